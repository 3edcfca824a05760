"""Networks that camlake did not know before: where their last maps, their pooling and their linear layer are."""
