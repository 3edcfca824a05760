"""What ``python -m tests.benchmarks.study`` is made of."""
