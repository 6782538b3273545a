"""Benchmark of train.py against a plain PyTorch script and the limits of the hardware."""
