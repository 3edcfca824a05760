"""Independent implementations that tests and benchmarks compare camlake with."""
