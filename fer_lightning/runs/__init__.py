"""Folders of runs and sweeps; nothing here imports torch."""
