"""What is known of images beforehand: true boxes, masks and labels."""
