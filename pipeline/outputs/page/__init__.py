"""What shows an output to people: the page of ``camlake report`` and the server of ``camlake view``."""
