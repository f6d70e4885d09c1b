"""What stages and commands share, one folder per idea. docs/architecture.md has a line for each file."""
