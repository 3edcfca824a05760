"""The networks: how each is built, and how it is cut into a trunk and a head."""

import pipeline.models.networks.torchvision_private  # noqa: F401 - before any module here imports torchvision
