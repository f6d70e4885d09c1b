"""The pages: the results, the data, suspicious labels, the demo."""
