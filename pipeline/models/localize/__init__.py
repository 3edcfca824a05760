"""Localization: a network's classes, class activation maps, boxes and features for pictures."""

import pipeline.models.networks  # noqa: F401 - before any module here imports torchvision
