"""The parts of benchmark.py, one a file: ours and its rivals, side by side."""
