"""Rendered scenes with known boxes: what the demo shows and the demo network learned from."""
