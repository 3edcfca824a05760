"""What is written: runs, leases, commits and tables of an output, and how they are read back and verified."""
