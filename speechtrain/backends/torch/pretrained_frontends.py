"""How the input of each kind of pretrained model becomes what its layers see, of an utterance in a padded batch as of one alone."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speechtrain.backends.torch.encoder import frame_mask, frame_weights
from speechtrain.backends.torch.models.wav2vec2 import norm_over_time, shorter
from speechtrain.backends.torch.pretrained_net import BERT, CONFORMER, FIX, PARAKEET
from speechtrain.errors import ConfigError, Problem


class _StageLengths:
    """Holds the lengths (B,) of the utterances of a batch, behind the first convolutions and behind each layer of an adapter."""

    def __init__(self) -> None:
        self.lengths: list[torch.Tensor] = []


class _ZeroBehind:
    """Sets the input (B, C, T) of a convolution to zero behind each utterance, where Transformers lets the padding leak into it."""

    def __init__(self, stages: _StageLengths, stage: int) -> None:
        self._stages, self._stage = stages, stage

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        return (x * frame_weights(self._stages.lengths[self._stage], x.shape[2], x.dtype)[:, None], *inputs[1:])


class Frontend:
    """What differs between the kinds of models: how their input becomes what their layers see.

    Attributes:
        extractor: what `freeze_extractor` leaves as it is.
        layers: the layers, from the bottom up.
        frames_masked_together: frames of what is masked for each encoder frame.
        behind_layers: beginnings of the names of parameters behind the layers.
    """

    extractor: Any
    layers: Any
    subsampling: int
    min_frames: int = 1
    frames_masked_together = 1
    behind_layers: tuple[str, ...] = ("adapter.", "intermediate_ffn.")

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""
        raise NotImplementedError

    def project(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the layers see, (B, T', D), before anything of it is masked, and lengths (B,)."""
        raise NotImplementedError

    def encode(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output (B, T', D) of the layers with its lengths (B,)."""
        raise NotImplementedError


class _Waveform(Frontend):
    """wav2vec 2.0, HuBERT, WavLM, data2vec and wav2vec 2.0 with conformer layers: convolutions of samples (B, T, 1)."""

    def __init__(self, net: Any, input_size: int, stages: _StageLengths) -> None:
        if input_size != 1:
            raise _other_input(input_size, "takes samples")
        self.net, self.stages = net, stages
        self.extractor, self.layers = net.feature_extractor, net.encoder.layers
        self.shapes = list(zip(net.config.conv_kernel, net.config.conv_stride, strict=True))
        if getattr(net.config, "do_stable_layer_norm", False) or net.config.model_type == CONFORMER:
            self.behind_layers = (*self.behind_layers, "encoder.layer_norm.")  # it stands before the layers in the others
        self.subsampling = math.prod(net.config.conv_stride)
        self.min_frames = 1
        for kernel, stride in reversed(self.shapes):
            self.min_frames = (self.min_frames - 1) * stride + kernel
        self.adapter = _adapter_of(net, stages)
        self.subsampling *= self.adapter.factor
        positions: Any = getattr(net.encoder, "pos_conv_embed", None)
        leaking = [layer.conv for layer in getattr(positions, "layers", ())]
        leaking += [positions.conv] if getattr(positions, "batch_norm", None) is not None else []
        leaking += [layer.conv_module.depthwise_conv for layer in self.layers if hasattr(layer, "conv_module")]
        for convolution in leaking:
            convolution.register_forward_pre_hook(_ZeroBehind(stages, 0))

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        for kernel, stride in self.shapes:
            lengths = shorter(lengths, kernel, stride)
        return self.adapter.output_lengths(lengths)

    def project(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = features.transpose(1, 2)
        for layer, (kernel, stride) in zip(self.extractor.conv_layers, self.shapes, strict=True):
            lengths = shorter(lengths, kernel, stride)
            if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):  # over time, which is the utterance's and not its row's
                x = layer.activation(norm_over_time(layer.conv(x), lengths, layer.layer_norm).to(x.dtype))
            else:
                x = layer(x)
        projected = self.net.feature_projection(x.transpose(1, 2))
        return (projected[0] if isinstance(projected, tuple) else projected), lengths

    def encode(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        attended = lengths.clamp_min(1)  # attention to nothing is no number
        self.stages.lengths = [attended]
        encoded = self.net.encoder(x.clone(), attention_mask=frame_mask(attended, x.shape[1])).last_hidden_state
        return self.adapter(encoded, lengths)


class _Bert(Frontend):
    """W2V-BERT 2.0: mel energies (B, T, F), two frames of which are one for its layers; the last one alone is seen by no other."""

    def __init__(self, net: Any, input_size: int, stages: _StageLengths) -> None:
        wanted = int(net.config.feature_projection_input_dim)
        if wanted % input_size:
            raise _other_input(input_size, f"takes frames of {wanted} values, joined of several")
        self.net, self.stages = net, stages
        self.joined = wanted // input_size
        self.extractor, self.layers = nn.Identity(), net.encoder.layers
        self.adapter = _adapter_of(net, stages)
        self.subsampling = self.joined * self.adapter.factor
        self.min_frames = self.joined

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        return self.adapter.output_lengths((lengths + self.joined - 1) // self.joined)

    def project(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.pad(features, (0, 0, 0, self.joined - 1))
        frames = x.shape[1] // self.joined
        x = x[:, : frames * self.joined].reshape(features.shape[0], frames, self.joined * features.shape[2])
        return self.net.feature_projection(x)[0], lengths

    def encode(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        whole = (lengths // self.joined).clamp_min(1)
        inside = frame_mask(whole, x.shape[1])
        encoded = self.net.encoder(x, attention_mask=inside).last_hidden_state
        if (further := self.net.intermediate_ffn) is not None:
            encoded = encoded + 0.5 * further(encoded)
        return self.adapter(encoded, (lengths + self.joined - 1) // self.joined, inside)


class _Parakeet(Frontend):
    """Parakeet-CTC (Rekesh et al. 2023): mel energies (B, T, F), the last frame of which is behind the end of the recording.

    Transformers lets an encoder frame that holds nothing else see all frames alike; here all of its utterance, padded or not.
    """

    def __init__(self, net: Any, input_size: int, stages: _StageLengths) -> None:
        if net.config.num_mel_bins != input_size:
            raise _other_input(input_size, f"takes {net.config.num_mel_bins} mel energies")
        self.net, self.stages = net, stages
        self.extractor, self.layers = net.subsampling, net.layers
        self.subsampling = self.frames_masked_together = int(net.config.subsampling_factor)
        self.min_frames = 2

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        padding = 2 * self.net.subsampling.padding
        for _ in range(self.net.subsampling.num_layers):
            lengths = shorter(lengths + padding, self.net.subsampling.kernel_size, self.net.subsampling.stride)
        return lengths

    def project(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return features, lengths

    def encode(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frames = self.output_lengths(lengths)
        inside = frame_mask((lengths - 1).clamp_min(1), x.shape[1])
        return self.net(x, attention_mask=inside, frames=frames.clamp_min(1)).last_hidden_state, frames


class _Adapter:
    """Convolutions behind the layers that lower the frame rate, where a checkpoint has them (`add_adapter`)."""

    def __init__(self, module: Any, config: Any, stages: _StageLengths, padding: int) -> None:
        self.module, self.stages, self.padding = module, stages, padding
        self.count = int(config.num_adapter_layers) if module is not None else 0
        self.kernel = int(getattr(config, "adapter_kernel_size", 1))
        self.stride = int(getattr(config, "adapter_stride", 1))
        self.factor = self.stride**self.count
        for stage, layer in enumerate(module.layers if module is not None else ()):
            for convolution in (child for child in layer.children() if isinstance(child, nn.Conv1d)):
                convolution.register_forward_pre_hook(_ZeroBehind(stages, stage))

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        for _ in range(self.count):
            lengths = shorter(lengths + 2 * self.padding, self.kernel, self.stride)
        return lengths

    def __call__(self, x: torch.Tensor, lengths: torch.Tensor, inside: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        if self.module is None:
            return x, lengths
        self.stages.lengths = [lengths]
        for _ in range(self.count):
            self.stages.lengths.append(shorter(self.stages.lengths[-1] + 2 * self.padding, self.kernel, self.stride))
        output = self.module(x) if inside is None else self.module(x, attention_mask=inside)
        return output, self.stages.lengths[-1]


def _adapter_of(net: Any, stages: _StageLengths) -> _Adapter:
    return _Adapter(getattr(net, "adapter", None), net.config, stages, 1)


def _other_input(size: int, takes: str) -> ConfigError:
    fix = f"set features=pretrained; if they are, {FIX}"
    return ConfigError([Problem("features", f"have {size} values a frame, and the checkpoint {takes}", fix)])


def build_frontend(kind: str, net: Any, input_size: int) -> Frontend:
    """Build what stands before the layers of a pretrained model, and makes those that see the frames beside them see no padding.

    Args:
        kind: the `model_type` of its architecture.
        net: the model without its head.
        input_size: F.

    Raises:
        ConfigError: it has another input.
    """
    return {PARAKEET: _Parakeet, BERT: _Bert}.get(kind, _Waveform)(net, input_size, _StageLengths())
