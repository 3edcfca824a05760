"""Level 2: decoding, geometry and rendering of images."""
