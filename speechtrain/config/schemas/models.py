"""Schemas of the models' sizes; `conf/model` has the values, and the arguments of each class are checked against its signature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from omegaconf import MISSING

from speechtrain.config.extras import needed
from speechtrain.config.schemas.node import SIZES, Rule, Target, choice, number

_WIDTH, _DEPTH, _REACH = 65_536, 1_000, 10_000
"""The most channels of a layer, layers, and frames or layers that a kernel, a stride or a stack takes in."""


@dataclass
class Dilated(Target):
    """The keys of stacks of convolutions in time, one for each dilation."""

    channels: int = number(ge=1, most=_WIDTH)
    kernel_size: int = number(ge=1, most=_REACH)
    dilations: list[int] = number(ge=1, most=_REACH)
    dropout: float = number(ge=0, lt=1)

    def rules(self) -> Iterator[Rule]:
        if self.kernel_size % 2 == 0:
            yield "kernel_size", f"must be odd so that frames stay centred, received {self.kernel_size}", "add or take 1"


@dataclass
class Tdnn(Dilated):
    stem_channels: list[int] = number(ge=1, most=_WIDTH)
    stem_time_strides: list[int] = number(ge=1, most=_REACH)

    def rules(self) -> Iterator[Rule]:
        if len(self.stem_channels) != len(self.stem_time_strides):
            yield (
                "stem_time_strides",
                f"has {len(self.stem_time_strides)} entries, stem_channels has {len(self.stem_channels)}",
                "give one time stride for each stem layer",
            )


@dataclass
class Sized(Target):
    """A model with `size`, which chooses among the values of `${by_size:...}` and is not passed to `_target_`."""

    size: str = choice(*SIZES)


@dataclass
class Attentive(Sized):
    """The keys that all encoders with attention have."""

    d_model: int = number(ge=1, most=_WIDTH)
    n_layers: int = number(ge=1, most=_DEPTH)
    n_heads: int = number(ge=1, most=_WIDTH)
    ff_multiplier: float = number(gt=0, most=_REACH)
    kernel_size: int = number(ge=1, most=_REACH)
    subsampling: int = number(ge=2, le=8)
    stem_channels: int = number(ge=1, most=_WIDTH)
    dropout: float = number(ge=0, lt=1)

    def rules(self) -> Iterator[Rule]:
        if self.d_model % self.n_heads:
            fits = [n for n in range(1, self.d_model + 1) if self.d_model % n == 0 and (self.d_model // n) % 2 == 0]
            near = min(fits, key=lambda n: abs(n - self.n_heads), default=1)
            yield (
                "d_model",
                f"is {self.d_model}, not divisible by n_heads={self.n_heads}",
                f"set model.n_heads={near}, or make model.d_model a multiple of {self.n_heads}",
            )
        elif (self.d_model // self.n_heads) % 2:
            yield (
                "n_heads",
                f"leaves {self.d_model // self.n_heads} dimensions a head; rotary positions need an even number",
                f"set model.d_model={2 * self.n_heads * max(1, round(self.d_model / (2 * self.n_heads)))}",
            )
        if self.kernel_size % 2 == 0:
            yield "kernel_size", f"must be odd so that frames stay centred, received {self.kernel_size}", "add or take 1"
        if self.subsampling not in (2, 4, 8):
            yield "subsampling", f"must be 2, 4 or 8, received {self.subsampling}", "for example model.subsampling=4"


@dataclass
class Conformer(Attentive):
    chunk_frames: int | None = number(ge=1)
    left_chunks: int | None = number(ge=0)
    train_chunk_frames: list[int | None] | None = number(ge=1)

    def rules(self) -> Iterator[Rule]:
        if (sizes := self.train_chunk_frames) is not None:
            if not sizes:
                yield "train_chunk_frames", "is empty", "list lengths of chunks, for example [4,8,null], or set it to null"
            elif self.chunk_frames not in sizes:
                received = f"lacks model.chunk_frames={'null' if self.chunk_frames is None else self.chunk_frames}"
                yield "train_chunk_frames", received, "a model is tested with chunks that it was trained with: add it to the list"
        if self.left_chunks is not None and not any((self.chunk_frames, *(sizes or ()))):
            yield "left_chunks", f"is {self.left_chunks}, and there are no chunks", "set model.chunk_frames=16, or model.left_chunks=null"


_TORCH: Mapping[str, tuple[str, ...]] = {"backend": ("TorchBackend",)}


@dataclass
class FastConformer(Attentive):
    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = _TORCH


@dataclass
class EBranchformer(Attentive):
    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = _TORCH
    gate_multiplier: float = number(gt=0, most=_REACH)


@dataclass
class Zipformer(Sized):
    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = _TORCH
    rates: list[int] = number(ge=1, most=_REACH)
    widths: list[int] = number(ge=1, most=_WIDTH)
    layers: list[int] = number(ge=1, most=_DEPTH)
    heads: list[int] = number(ge=1, most=_WIDTH)
    hidden: list[int] = number(ge=4, most=_WIDTH)
    kernel_sizes: list[int] = number(ge=1, most=_REACH)
    head_size: int = number(ge=2, most=_WIDTH)
    stem_channels: int = number(ge=1, most=_WIDTH)
    dropout: float = number(ge=0, lt=1)

    def rules(self) -> Iterator[Rule]:
        for key in ("widths", "layers", "heads", "hidden", "kernel_sizes"):
            if len(getattr(self, key)) != len(self.rates):
                yield key, f"has {len(getattr(self, key))} entries, rates has {len(self.rates)}", "give one for each stack of layers"
        if self.head_size % 2:
            yield "head_size", f"is {self.head_size}; rotary positions need an even number", "add or take 1"
        if any(size % 2 == 0 for size in self.kernel_sizes):
            yield "kernel_sizes", f"must be odd so that frames stay centred, received {list(self.kernel_sizes)}", "add or take 1"


@dataclass
class Wav2Vec2(Sized):
    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {**_TORCH, "features": ("WaveformFeatures",)}
    channels: int = number(ge=1, most=_WIDTH)
    d_model: int = number(ge=16, most=_WIDTH)
    n_layers: int = number(ge=1, most=_DEPTH)
    n_heads: int = number(ge=1, most=_WIDTH)
    ff_multiplier: float = number(gt=0, most=_REACH)
    position_kernel: int = number(ge=1, most=_REACH)
    layer_norm: bool = MISSING
    dropout: float = number(ge=0, lt=1)
    mask_prob: float = number(ge=0, lt=1)
    mask_length: int = number(ge=1)
    bundle: str | None = MISSING
    weights: str | None = MISSING
    freeze_extractor: bool = MISSING

    def rules(self) -> Iterator[Rule]:
        yield from needed("", ("torchaudio",))
        step = math.lcm(16, self.n_heads)  # positions are convolved in 16 groups
        if self.d_model % step:
            message = f"is {self.d_model}, no multiple of 16 and of n_heads={self.n_heads}"
            yield "d_model", message, f"set model.d_model={step * max(1, round(self.d_model / step))}"


PRETRAINED = ("wav2vec2", "hubert", "wavlm", "wav2vec2-conformer", "data2vec-audio", "wav2vec2-bert", "parakeet_ctc")
"""The `model_type` of the checkpoints that `model=pretrained` takes."""


@dataclass
class Pretrained(Target):
    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {**_TORCH, "features": ("PretrainedFeatures",)}
    path: str | None = MISSING
    revision: str | None = MISSING
    language: str | None = MISSING
    architecture: dict[str, Any] | None = MISSING
    train: str = choice("all", "adapters", "head")
    freeze_extractor: bool = MISSING
    unfreeze_after: int = number(ge=0)
    layer_lr_decay: float = number(gt=0, le=1)
    dropout: float | None = number(ge=0, lt=1)
    mask_time_prob: float = number(ge=0, lt=1)
    mask_time_length: int = number(ge=1, most=_REACH)
    mask_feature_prob: float = number(ge=0, lt=1)
    mask_feature_length: int = number(ge=1, most=_WIDTH)
    lora_rank: int | None = number(ge=1, most=_WIDTH)
    lora_alpha: float = number(gt=0)
    lora_dropout: float = number(ge=0, lt=1)
    lora_targets: list[str] | None = MISSING

    def rules(self) -> Iterator[Rule]:
        yield from needed("", ("transformers", *(["peft"] if self.lora_rank is not None else [])))
        if self.lora_rank is not None and self.train != "all":
            yield "lora_rank", f"adds weights that are trained, and model.train={self.train} leaves them out", "set model.train=all"
        if self.architecture is not None and self.architecture.get("model_type") not in PRETRAINED:
            kind = self.architecture.get("model_type")
            yield "architecture", f"is of a model of the kind {kind!r:.80}", f"give one of {', '.join(PRETRAINED)}"


@dataclass
class Crdnn(Sized):
    conv_channels: list[int] = number(ge=1, most=_WIDTH)
    conv_time_strides: list[int] = number(ge=1, most=_REACH)
    rnn: str = choice("lstm", "gru")
    rnn_size: int = number(ge=1, most=_WIDTH)
    rnn_layers: int = number(ge=1, most=_DEPTH)
    bidirectional: bool = MISSING
    dnn_size: int = number(ge=1, most=_WIDTH)
    dropout: float = number(ge=0, lt=1)

    def rules(self) -> Iterator[Rule]:
        if len(self.conv_channels) != len(self.conv_time_strides):
            yield (
                "conv_time_strides",
                f"has {len(self.conv_time_strides)} entries, conv_channels has {len(self.conv_channels)}",
                "give one time stride for each convolution",
            )


@dataclass
class Mlp(Target):
    hidden_sizes: list[int] = number(ge=1, most=_WIDTH)
    stack: int = number(ge=1, most=_REACH)
    dropout: float = number(ge=0, lt=1)


@dataclass
class QuartzNet(Sized):
    stem_channels: int = number(ge=1, most=_WIDTH)
    stem_kernel: int = number(ge=1, most=_REACH)
    subsampling: int = number(ge=1, le=8)
    channels: list[int] = number(ge=1, most=_WIDTH)
    kernel_sizes: list[int] = number(ge=1, most=_REACH)
    repeats: int = number(ge=1, most=_DEPTH)
    head_channels: int = number(ge=1, most=_WIDTH)
    head_kernel: int = number(ge=1, most=_REACH)
    head_dilation: int = number(ge=1, most=_REACH)
    dropout: float = number(ge=0, lt=1)

    def rules(self) -> Iterator[Rule]:
        if len(self.channels) != len(self.kernel_sizes):
            yield "kernel_sizes", f"has {len(self.kernel_sizes)} entries, channels has {len(self.channels)}", "give one for each block"
        for key in ("stem_kernel", "head_kernel", "kernel_sizes"):
            sizes = list(getattr(self, key)) if key == "kernel_sizes" else [getattr(self, key)]
            if any(size % 2 == 0 for size in sizes):
                yield key, f"must be odd so that frames stay centred, received {getattr(self, key)}", "add or take 1"


@dataclass
class Jasper(Dilated):
    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = _TORCH
    time_strides: list[int] = number(ge=1, most=_REACH)

    def rules(self) -> Iterator[Rule]:
        if not self.time_strides:
            yield "time_strides", "is empty, and a first convolution is needed", "for example model.time_strides=[2,2]"


@dataclass
class Lstm(Sized):
    hidden_size: int = number(ge=1, most=_WIDTH)
    layers: int = number(ge=1, most=_DEPTH)
    stack: int = number(ge=1, most=_REACH)
    chunk_frames: int = number(ge=1)
    detach_every: int | None = number(ge=1)
    dropout: float = number(ge=0, lt=1)
