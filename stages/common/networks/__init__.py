"""The networks: backbones, heads, the CNN from scratch, and files of models."""
