"""Weights: published weights by name, files with and without a card, and state dicts fitted to a network."""

import pipeline.models.networks  # noqa: F401 - before any module here imports torchvision
