"""What the claims about recipes rest on: run by hand, not by dvc."""
