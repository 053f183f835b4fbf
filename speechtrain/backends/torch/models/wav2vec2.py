"""wav2vec 2.0 (Baevski et al. 2020) and HuBERT (Hsu et al. 2021), from torchaudio's parts: convolutions of the waveform, a transformer."""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speechtrain.backends.checkpoint_files import check_torch_file
from speechtrain.backends.torch import internals
from speechtrain.backends.torch.encoder import Encoder, Stack, frame_mask
from speechtrain.backends.zip_files import UNREADABLE
from speechtrain.errors import ConfigError, Problem, first_line
from speechtrain.files import user_path

log = logging.getLogger(__name__)

_KERNELS, _STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # of all models of this kind
_WRONG_UP_TO = 8  # channels of a group: oneDNN of PyTorch 2.11 convolves them wrongly in bfloat16 where kernels have an even length
_EXAMPLE = "for example model.bundle=WAV2VEC2_BASE; python -c 'import torchaudio.pipelines as p; print(dir(p))' lists them"


class Wav2Vec2(Encoder):
    """See `conf/model/wav2vec2.yaml` for the arguments; `input_size` is 1: a frame is a sample.

    Where torchaudio's model normalises over a whole row of a batch, this one does over the utterance in it: padding changes nothing.

    Raises:
        ConfigError: there is no such bundle, or none of this kind.
    """

    def __init__(
        self,
        input_size: int,
        channels: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        ff_multiplier: float,
        position_kernel: int,
        layer_norm: bool,
        dropout: float,
        mask_prob: float,
        mask_length: int,
        bundle: str | None,
        weights: str | None,
        freeze_extractor: bool,
    ) -> None:
        super().__init__()
        if input_size != 1:
            raise ConfigError(
                [Problem("features", f"have {input_size} values a frame, and model=wav2vec2 takes samples", "features=waveform")]
            )
        self.weights = user_path(weights) if weights is not None else None
        if bundle is not None or weights is not None:
            self.shape = _shape_of(bundle, self.weights)
        else:
            self.shape = {
                "extractor_mode": "layer_norm" if layer_norm else "group_norm",
                "extractor_conv_layer_config": [(channels, *each) for each in zip(_KERNELS, _STRIDES, strict=True)],
                "extractor_conv_bias": layer_norm,
                "encoder_embed_dim": d_model,
                "encoder_pos_conv_kernel": position_kernel,
                "encoder_pos_conv_groups": 16,
                "encoder_num_layers": n_layers,
                "encoder_num_heads": n_heads,
                "encoder_ff_interm_features": round(ff_multiplier * d_model),
                "encoder_layer_norm_first": layer_norm,
            }
        self.shape |= dict.fromkeys(("encoder_projection_dropout", "encoder_attention_dropout", "encoder_dropout"), dropout)
        self.shape |= {"encoder_ff_interm_dropout": 0.0, "encoder_layer_drop": 0.0, "aux_num_out": None}
        self.frozen = self.weights is not None and freeze_extractor
        self._take(_net(self.shape))
        self.mask_prob, self.mask_length = mask_prob, mask_length
        self.output_size = int(self.shape["encoder_embed_dim"])
        self.mask = nn.Parameter(torch.empty(self.output_size).uniform_())
        self.subsampling = math.prod(stride for _, _, stride in self.shape["extractor_conv_layer_config"])
        self.receptive_field = None
        self.min_frames = _window(self.shape["extractor_conv_layer_config"])

    def _take(self, net: Any) -> None:
        transformer = net.encoder.transformer
        without_weight_norm(transformer.pos_conv_embed.conv)
        self.extractor = net.feature_extractor.conv_layers.requires_grad_(not self.frozen)
        self.projection = net.encoder.feature_projection
        self.positions = transformer.pos_conv_embed
        self.norm = transformer.layer_norm
        self.norm_first = bool(transformer.layer_norm_first)
        self.dropout = transformer.dropout
        self.layers = Stack((Layer(layer) for layer in transformer.layers), self.positions.embed_dim)

    def load_pretrained(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Load the weights of the file that `weights` names, if it names one; the head that some have is not among them.

        Raises:
            ConfigError: the file cannot be read, or is of another model.
        """
        if self.weights is None:
            return None
        net = _net(self.shape)
        try:
            if zipfile.is_zipfile(self.weights):  # files of before PyTorch 1.6 are none, and have no checksums
                check_torch_file(Path(self.weights))
            state = torch.load(self.weights, map_location="cpu", weights_only=True)
            net.load_state_dict({name: value for name, value in state.items() if not name.startswith("aux.")})
        except UNREADABLE as error:
            lines = str(error).strip().splitlines()
            reason = lines[1].strip() if isinstance(error, RuntimeError) and len(lines) > 1 else first_line(error, most=120)
            fix = "give the file of torchaudio's bundle, and its name with model.bundle"
            raise ConfigError([Problem("model.weights", f"{self.weights} is not the file of this model: {reason}", fix)]) from error
        self._take(net)
        log.info("pretrained weights of %s", self.weights)
        return None

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the encoder frames (B,) of samples (B,): none where there are fewer than a window of 400 (25 ms)."""
        for block in self.extractor:
            lengths = shorter(lengths, block.kernel_size, block.stride)
        return lengths

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode samples (B, T, 1) as (B, T', D), with their lengths (B,)."""
        x = features.transpose(1, 2)
        if x.shape[2] < self.min_frames:
            x = F.pad(x, (0, self.min_frames - x.shape[2]))
        x, lengths = self._extract(x, lengths)
        x = self.projection(x.transpose(1, 2))
        inside = frame_mask(lengths.clamp_min(1), x.shape[1])
        if self.training and self.mask_prob:
            x = torch.where(self._masked(x)[:, :, None], self.mask.to(x.dtype), x)
        x = torch.where(inside[:, :, None], x, 0.0)
        x = x + self._positions(x)
        if self.norm_first:
            x = self.norm(x)
        x = self.layers(self.dropout(x), inside[:, None, None, :].expand(-1, 1, x.shape[1], -1))
        return (x if self.norm_first else self.norm(x)), lengths

    def _extract(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Convolve samples (B, 1, T) to (B, C, T'), and return the lengths (B,)."""
        for block in self.extractor:
            x = block.conv(x)
            lengths = shorter(lengths, block.kernel_size, block.stride)
            if isinstance(block.layer_norm, nn.GroupNorm):
                x = norm_over_time(x, lengths, block.layer_norm)
            elif block.layer_norm is not None:
                x = block.layer_norm(x)
            x = F.gelu(x)
        return x, lengths

    def _positions(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve over time for positions, (B, T', D) to (B, T', D)."""
        conv: Any = self.positions.conv
        half = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if x.device.type != "cpu" or not half or conv.in_channels // conv.groups > _WRONG_UP_TO or torch.compiler.is_compiling():
            positions: torch.Tensor = self.positions(x)
            return positions
        with torch.autocast("cpu", enabled=False):
            weight, bias = conv.weight.float(), conv.bias.float()
            convolved = F.conv1d(x.float().transpose(1, 2), weight, bias, padding=conv.padding, groups=conv.groups)
            return F.gelu(convolved[:, :, : x.shape[1]]).transpose(1, 2).to(x.dtype)

    def _masked(self, x: torch.Tensor) -> torch.Tensor:
        """Return spans of frames (B, T') of `mask_length`, which may overlap, so many that about a share of `mask_prob` lies in them."""
        starts = torch.rand(x.shape[:2], device=x.device) < self.mask_prob / self.mask_length
        spread = F.max_pool1d(F.pad(starts.float()[:, None], (self.mask_length - 1, 0)), self.mask_length, stride=1)
        return spread[:, 0] > 0


class Layer(nn.Module):
    """A transformer layer of torchaudio's, without the arguments that only WavLM uses."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, attend: torch.Tensor) -> torch.Tensor:
        """Map (B, T', D) to (B, T', D); each frame sees those that `attend` (B, 1, T', T') says."""
        output: torch.Tensor = self.layer(x, attend)[0]
        return output


def shorter(lengths: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Compute the frames (B,) that a convolution without padding leaves."""
    return (torch.div(lengths - kernel_size, stride, rounding_mode="floor") + 1).clamp_min(0)


def norm_over_time(x: torch.Tensor, lengths: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    """Bring each channel of (B, C, T) to mean 0 and variance 1 over its utterance, then scale and shift it as `norm` does."""
    inside = frame_mask(lengths, x.shape[2])[:, None, :].to(torch.float32)
    count = lengths.clamp_min(1)[:, None, None]
    centred = (x - (x * inside).sum(2, keepdim=True, dtype=torch.float32) / count) * inside
    variance = centred.square().sum(2, keepdim=True) / count
    return centred * torch.rsqrt(variance + norm.eps) * norm.weight[:, None] + norm.bias[:, None]


def without_weight_norm(convolution: nn.Module) -> None:
    """Give a convolution of positions the weight itself, which exporters know, in place of its length and direction."""
    nn.utils.parametrize.remove_parametrizations(convolution, "weight")


def _net(shape: Mapping[str, Any]) -> Any:
    """Build torchaudio's model of a shape, with weights drawn at random."""
    from torchaudio.models import wav2vec2_model

    return wav2vec2_model(**shape)


def _shape_of(bundle: str | None, weights: Path | None) -> dict[str, Any]:
    """Find the arguments of torchaudio's model by the bundle's name, or by that of its file."""
    from torchaudio import pipelines

    known = {name: each for name in dir(pipelines) if isinstance(each := getattr(pipelines, name), pipelines.Wav2Vec2Bundle)}
    if bundle is None:
        assert weights is not None
        of_this_file = [each for each in known.values() if internals.bundle_file(each) == weights.name]
        if not of_this_file:
            message = f"{weights.name} is not the name of a file of torchaudio's"
            raise ConfigError([Problem("model.weights", message, f"say which bundle it is of: {_EXAMPLE}")])
        chosen = of_this_file[0]
    elif bundle in known:
        chosen = known[bundle]
    else:
        raise ConfigError([Problem("model.bundle", f"there is no bundle {bundle} in torchaudio.pipelines", _EXAMPLE)])
    if (kind := internals.bundle_kind(chosen)) != "Wav2Vec2":
        message = f"is a {kind}, whose attention is another"
        raise ConfigError([Problem("model.bundle", message, "take one of WAV2VEC2_... or HUBERT_...")])
    return internals.bundle_arguments(chosen)


def _window(layers: list[tuple[int, int, int]]) -> int:
    """Compute how many samples one frame depends on."""
    samples, hop = 1, 1
    for _, kernel, stride in layers:
        samples += (kernel - 1) * hop
        hop *= stride
    return samples
