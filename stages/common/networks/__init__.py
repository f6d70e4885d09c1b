"""The networks that are trained here: heads and the CNN from scratch; and files of models."""
