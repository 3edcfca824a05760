"""Level 4: the Ray graph. No other folder of pipeline/ imports ray."""
