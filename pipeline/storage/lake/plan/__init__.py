"""What of an input is not done yet, and what of an output the input no longer has."""
