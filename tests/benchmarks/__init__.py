"""The evidence behind README's figures: ``python -m tests.benchmarks.NAME``."""
