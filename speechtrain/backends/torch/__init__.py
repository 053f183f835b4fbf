"""The backend on PyTorch, whose models Lightning trains."""
