"""Times the stages on a sample of a run, chooses the fastest plan, and predicts what the run takes."""
