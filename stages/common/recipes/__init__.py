"""How a model of each kind is trained, from the split to the whole model."""
