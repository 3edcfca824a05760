"""Whether an output is complete and whole, and how it is repaired."""
