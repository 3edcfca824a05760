"""What every verb shares: the program, the screen, a verb of a configuration class, the estimate of a dry run."""
