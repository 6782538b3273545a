"""fer-lightning: facial emotion recognition on FER-2013 with PyTorch Lightning and Hydra."""
