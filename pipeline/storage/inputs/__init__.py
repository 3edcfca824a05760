"""What is read: how inputs are listed and their bytes are fetched."""
