"""Training with Lightning: module, optimizer and distillation."""
