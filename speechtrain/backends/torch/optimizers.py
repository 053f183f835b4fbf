"""PyTorch's optimizers under the names that `conf/optimizer` uses."""

from torch.optim.adam import Adam
from torch.optim.adamw import AdamW
from torch.optim.rmsprop import RMSprop
from torch.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]
