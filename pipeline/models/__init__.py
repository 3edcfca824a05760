"""Level 2: networks and their heads, their weights, how they learn, and how they localize."""
