"""Renders scenes with known boxes for the demo, for the training of its network, for tests and for benchmarks."""
