"""What a network says of a picture: classes, maps, boxes and features."""
