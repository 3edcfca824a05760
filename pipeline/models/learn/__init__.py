"""How a network learns: losses and steps, learning rates, and what it takes over from a trained network."""
