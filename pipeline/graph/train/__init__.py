"""The training of ``camlake train`` on Ray Train."""
