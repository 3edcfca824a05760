"""The inputs: how they are listed, and how their bytes are fetched."""
