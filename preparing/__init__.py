"""From one raw recording to segments: filters, what is kept, many files at a time."""
