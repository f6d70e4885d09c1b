"""How images are divided into parts."""
