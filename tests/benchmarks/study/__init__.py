"""The modules of ``python -m tests.benchmarks.study``."""
