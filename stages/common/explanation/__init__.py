"""What in an image a prediction rests on."""
