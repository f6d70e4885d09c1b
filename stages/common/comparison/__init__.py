"""Results of several revisions side by side."""
