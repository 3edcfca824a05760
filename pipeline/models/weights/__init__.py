"""Weights: torchvision's by name, files with and without a card, and how a state dict fits an architecture."""
