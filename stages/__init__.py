"""One file per stage of dvc.yaml, with the stage's name. What they share is in stages/common."""
