"""Lightning callbacks: checkpoints, history, TensorBoard, figures, weight averaging and pruning."""
