"""From predictions to scores, their intervals and their calibration."""
