"""Writes the boxes of an output as a dataset of another format; each format is one file of ``formats/``."""
