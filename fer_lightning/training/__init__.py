"""What Lightning needs to train a network: module, optimizer, distillation."""
