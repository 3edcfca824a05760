"""Merges the small files of an output and drops the rows that no longer count."""
