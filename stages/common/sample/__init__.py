"""The synthetic data set: what the pictures show, how they are drawn, and their annotation file."""
