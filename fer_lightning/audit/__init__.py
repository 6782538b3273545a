"""Audit of a dataset: duplicates, leaks between splits, conflicting and suspect labels."""
