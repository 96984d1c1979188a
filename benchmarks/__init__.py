"""The parts of benchmark.py, one a file. `add_flags(part)` adds the flags of one, `run(flags)` measures and prints."""
