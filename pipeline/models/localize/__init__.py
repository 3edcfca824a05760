"""Localization: a network's classes, class activation maps, boxes and features for pictures."""
