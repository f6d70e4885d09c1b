"""What people run on results: `python -m commands.NAME`. None of them is a stage."""
