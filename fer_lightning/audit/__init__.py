"""What is wrong with a dataset: copies, leaks, contradictory and suspect labels."""
