"""How a network learns: losses and steps, learning rates, and the layers it keeps of a trained network."""
