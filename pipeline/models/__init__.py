"""Level 2: CAM networks, their heads and their weights."""
