"""From what a data set says of its images to one table."""
