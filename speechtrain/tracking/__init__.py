"""Records runs: the contract of a tracker, the recorder that sends a run to all of them, and MLflow, TensorBoard and Weights & Biases."""
