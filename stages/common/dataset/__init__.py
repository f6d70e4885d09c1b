"""What stages read after the images are resized: chunk files and the split."""
