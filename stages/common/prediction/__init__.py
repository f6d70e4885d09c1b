"""Labels for images outside the data set."""
