"""Level 3½: what is done with an output: it is read, scored, calibrated, reboxed and shown."""
