"""Weights: published weights by name, files with and without a card, and state dicts fitted to a network."""
