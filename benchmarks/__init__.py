"""The parts of benchmark.py, one a file. `run(flags)` measures and returns the figures, `show(figures)` prints them."""
