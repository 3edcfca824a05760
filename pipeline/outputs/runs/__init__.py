"""The runs of an output: which there are, and how the one in progress goes on."""
