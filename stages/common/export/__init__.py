"""A trained model as a file of another program's format, or as a folder for a hub."""
