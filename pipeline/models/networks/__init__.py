"""The networks, and how each is built and cut into a trunk and a head."""
