"""Run and sweep folders, their ranking, and searches. Does not import torch."""
