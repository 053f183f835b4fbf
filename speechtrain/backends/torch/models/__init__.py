"""Encoders, one a file; `conf/model` names them here."""

from speechtrain.backends.torch.models.conformer import Conformer
from speechtrain.backends.torch.models.crdnn import Crdnn
from speechtrain.backends.torch.models.ebranchformer import EBranchformer
from speechtrain.backends.torch.models.fastconformer import FastConformer
from speechtrain.backends.torch.models.jasper import Jasper
from speechtrain.backends.torch.models.lstm import Lstm
from speechtrain.backends.torch.models.mlp import Mlp
from speechtrain.backends.torch.models.pretrained import Pretrained
from speechtrain.backends.torch.models.quartznet import QuartzNet
from speechtrain.backends.torch.models.tdnn import Tdnn
from speechtrain.backends.torch.models.wav2vec2 import Wav2Vec2
from speechtrain.backends.torch.models.zipformer import Zipformer

__all__ = [
    "Conformer",
    "Crdnn",
    "EBranchformer",
    "FastConformer",
    "Jasper",
    "Lstm",
    "Mlp",
    "Pretrained",
    "QuartzNet",
    "Tdnn",
    "Wav2Vec2",
    "Zipformer",
]
