"""Registers the files of an output as a table of an Iceberg catalog."""
