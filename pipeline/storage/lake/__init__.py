"""The output: its runs, leases, commits and tables, and how they are written, read back and verified."""
