"""Level 4: the Ray graph. The only imports of ray in pipeline/."""
