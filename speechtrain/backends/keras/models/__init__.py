"""Encoders, one a file, under the names and with the arithmetic of `speechtrain.backends.torch.models`."""

from speechtrain.backends.keras.models.conformer import Conformer
from speechtrain.backends.keras.models.crdnn import Crdnn
from speechtrain.backends.keras.models.lstm import Lstm
from speechtrain.backends.keras.models.mlp import Mlp
from speechtrain.backends.keras.models.quartznet import QuartzNet
from speechtrain.backends.keras.models.tdnn import Tdnn

__all__ = ["Conformer", "Crdnn", "Lstm", "Mlp", "QuartzNet", "Tdnn"]
