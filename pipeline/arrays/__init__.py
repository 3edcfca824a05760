"""Level 1: pure functions on tensors and arrays. No file, no clock, no cluster."""
