"""Encoders, one a file; `conf/model` names them here."""

from speechtrain.backends.torch.models.conformer import Conformer
from speechtrain.backends.torch.models.crdnn import Crdnn
from speechtrain.backends.torch.models.lstm import Lstm
from speechtrain.backends.torch.models.mlp import Mlp
from speechtrain.backends.torch.models.quartznet import QuartzNet
from speechtrain.backends.torch.models.tdnn import Tdnn

__all__ = ["Conformer", "Crdnn", "Lstm", "Mlp", "QuartzNet", "Tdnn"]
