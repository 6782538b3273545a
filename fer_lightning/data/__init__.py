"""Data sources, the cache, augmentation and batches."""
