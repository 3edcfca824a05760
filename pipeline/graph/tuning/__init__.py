"""Measures the stages on a sample of a run, chooses the fastest plan, and predicts the duration of the run."""
