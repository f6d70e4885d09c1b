"""What stages and commands share, one folder an idea. docs/architecture.md has a line for each file."""
