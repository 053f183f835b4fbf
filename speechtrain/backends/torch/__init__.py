"""PyTorch, trained by Lightning."""
