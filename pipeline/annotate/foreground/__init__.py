"""Chooses or learns the figure/ground direction of a run."""
