"""What ``python -m jobs.study`` is made of."""
