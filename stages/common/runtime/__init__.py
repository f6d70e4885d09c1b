"""How a stage runs: parameters, paths, files, errors, resuming. Nothing here changes a result, so no stage depends on it."""
