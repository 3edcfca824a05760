"""The networks: how each is built, and how it is cut into a trunk and a head."""
