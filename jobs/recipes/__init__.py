"""Uses of linear heads on stored features, each one command from pictures to a page of results."""
