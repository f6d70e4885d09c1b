"""What every training uses: batches, losses, and the trainer."""
