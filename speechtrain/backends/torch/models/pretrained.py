"""Pretrained encoders of Hugging Face's Transformers: wav2vec 2.0 and its relatives, W2V-BERT 2.0 and Parakeet (FastConformer).

Transformers computes what lies between the first convolutions and the head. Here is what it has not: an utterance in a padded batch gives
what it gives alone, and weights are read from their files without running anything of the checkpoint.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speechtrain.backends.torch.encoder import Encoder
from speechtrain.backends.torch.pretrained_files import Weights, read_pretrained
from speechtrain.backends.torch.pretrained_frontends import build_frontend
from speechtrain.backends.torch.pretrained_net import CONFORMER, PARAKEET, add_low_rank, build_net
from speechtrain.config.pretrained import Checkpoint
from speechtrain.config.schemas.models import PRETRAINED
from speechtrain.errors import ConfigError, Problem

log = logging.getLogger(__name__)


class Pretrained(Encoder):
    """See `conf/model/pretrained.yaml` for the arguments; the F of its input follows from the checkpoint.

    Attributes:
        unfreeze_after: see `conf/model/pretrained.yaml`.

    Raises:
        ConfigError: the checkpoint cannot be read, or has another input.
    """

    def __init__(
        self,
        input_size: int,
        path: str,
        revision: str | None,
        language: str | None,
        architecture: Mapping[str, Any] | None,
        train: str,
        freeze_extractor: bool,
        unfreeze_after: int,
        layer_lr_decay: float,
        dropout: float | None,
        mask_time_prob: float,
        mask_time_length: int,
        mask_feature_prob: float,
        mask_feature_length: int,
        lora_rank: int | None,
        lora_alpha: float,
        lora_dropout: float,
        lora_targets: Sequence[str] | None,
    ) -> None:
        super().__init__()
        self.path, self.revision, self.language = path, revision, language
        self.architecture = dict(architecture) if architecture is not None else Checkpoint.find(path, revision).architecture
        self.kind = str(self.architecture.get("model_type"))
        if self.kind not in PRETRAINED:
            raise ConfigError([Problem("model.architecture", f"is of the kind {self.kind!r:.80}", f"give one of {', '.join(PRETRAINED)}")])
        self.unfreeze_after, self._frozen, self._checkpointing = unfreeze_after, False, False
        self.lr_decay = layer_lr_decay
        self.masks = _Masks(mask_time_prob, mask_time_length, mask_feature_prob, mask_feature_length)
        self.net = build_net(self.architecture, dropout)
        self.front = build_frontend(self.kind, self.net, input_size)
        self._layer_drop = _LayerDrop()
        for layer in self.front.layers:
            layer.register_forward_hook(self._layer_drop)
        config = self.net.config
        self.output_size = int(config.output_hidden_size if getattr(config, "add_adapter", False) else config.hidden_size)
        self.subsampling, self.min_frames, self.receptive_field = self.front.subsampling, self.front.min_frames, None
        self.mask = None if self.kind == PARAKEET else nn.Parameter(torch.empty(config.hidden_size).uniform_())
        if self.mask is not None and not mask_time_prob:  # several devices wait for the gradient of what is trained
            self.mask.requires_grad = False
        self.dropout = nn.Dropout(float(getattr(config, "final_dropout", 0.0)))
        self._choose_trained(train, freeze_extractor=freeze_extractor)
        if lora_rank is not None:
            add_low_rank(self.net, self.kind, lora_rank, lora_alpha, lora_dropout, lora_targets)

    def _choose_trained(self, train: str, *, freeze_extractor: bool) -> None:
        """Set which of the weights are trained.

        Raises:
            ConfigError: adapters are to be trained, and the model has none.
        """
        if train != "all":
            self.requires_grad_(requires_grad=False)
        if train == "adapters":
            adapters = [module for name, module in self.net.named_modules() if name.endswith("adapter_layer")]
            if not adapters:
                message = "is adapters, and the checkpoint has no adapters of a language"
                raise ConfigError([Problem("model.train", message, "set model.train=all or head, or model.lora_rank=8")])
            for each in adapters:
                each.requires_grad_()
        if self.kind == CONFORMER:  # Transformers has it there, and does not use it
            self.net.encoder.pos_conv_embed.requires_grad_(requires_grad=False)
        if freeze_extractor:
            self.front.extractor.requires_grad_(requires_grad=False)

    def load_pretrained(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Load the checkpoint's weights; return weight (V, D) and bias (V,) of its own head, None if it has none.

        Raises:
            ConfigError: they cannot be read, or are of another model.
        """
        checkpoint = Checkpoint.find(self.path, self.revision)
        weights = read_pretrained(checkpoint, self.architecture, self.revision, self.language)
        self._load(weights, checkpoint)
        log.info("pretrained weights of %s", checkpoint.folder)
        return weights.head

    def _load(self, weights: Weights, checkpoint: Checkpoint) -> None:
        own = self.net.state_dict()
        given = {}
        for name, value in own.items():
            if "lora_" in name:
                continue
            plain = name.replace(".base_layer.", ".")
            found = weights.encoder.get(plain)
            if found is None or found.shape != value.shape:
                has = "none" if found is None else f"one of the shape {tuple(found.shape)}"
                message = (
                    f"{checkpoint.folder}: its config.json asks for a weight {plain} of the shape {tuple(value.shape)}, and it has {has}"
                )
                raise ConfigError([Problem("model.path", message, "give a checkpoint whose files are of one model")])
            given[name] = found
        self.net.load_state_dict(given, strict=False)
        if self.mask is not None and weights.mask is not None and weights.mask.shape == self.mask.shape:
            self.mask.data.copy_(weights.mask)

    def adapt_warm_start(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the weights of another run's encoder, with those that low-rank updates are added to by the names that they have here.

        Raises:
            ConfigError: they were trained with updates that this model has not.
        """
        own = self.state_dict()
        if lost := [name for name, value in weights.items() if ".lora_" in name and (name not in own or own[name].shape != value.shape)]:
            rank = min(weights[lost[0]].shape)
            message = f"has low-rank updates of rank {rank} (LoRA), of which this model has none, or others"
            fix = f"set model.lora_rank={rank}; or add them to the weights by export format=[huggingface], and begin with model.path="
            raise ConfigError([Problem("init_from", message, fix)])
        names = {name.replace(".base_layer.", "."): name for name in own}
        return {names.get(name.replace(".base_layer.", "."), name): value for name, value in weights.items()}

    def prepare(self, *, layer_dropout: float, checkpointing: bool) -> None:
        """Set what a training asks for: the probability that a layer is skipped, and whether layers are computed again for gradients."""
        self._layer_drop.probability = layer_dropout
        if checkpointing:
            self.net.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        elif self._checkpointing:
            self.net.activation_checkpointing_disable()
        self._checkpointing = checkpointing

    def at_step(self, step: int) -> None:
        """Freeze everything before the head in the first optimizer steps, where `unfreeze_after` asks for it."""
        self._frozen = step < self.unfreeze_after

    def lr_scales(self) -> dict[str, float]:
        """Return by which factor each parameter learns more slowly than the head, by its name in the encoder."""
        layers = len(self.front.layers)
        scales = {}
        for name, _ in self.named_parameters():
            inside = re.fullmatch(r"net\.(?:encoder\.)?layers\.(\d+)\..*", name)
            depth = layers - int(inside[1]) if inside else layers + 1
            scales[name] = 1.0 if name.removeprefix("net.").startswith(self.front.behind_layers) else self.lr_decay**depth
        return scales

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""
        return self.front.output_lengths(lengths)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features (B, T, F) as (B, T', D), with their lengths (B,)."""
        if features.shape[1] < self.min_frames:
            features = F.pad(features, (0, 0, 0, self.min_frames - features.shape[1]))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not (self._frozen and self.training)):
            x, lengths = self.front.project(features, lengths)
            if self.training:
                x = self.masks(x, self.mask, self.front.frames_masked_together)
            x, lengths = self.front.encode(x, lengths)
            return self.dropout(x), lengths


class _Masks:
    """Hides stretches of frames and bands of features in training, so many that about such a share of each lies in them."""

    def __init__(self, time_prob: float, time_length: int, feature_prob: float, feature_length: int) -> None:
        self.time_prob, self.time_length = time_prob, time_length
        self.feature_prob, self.feature_length = feature_prob, feature_length

    def __call__(self, x: torch.Tensor, mask: torch.Tensor | None, together: int) -> torch.Tensor:
        """Replace frames of (B, T, D) by a learned one (D,), or by zeros, and features by zeros.

        Args:
            x: what the layers see.
            mask: the learned frame.
            together: frames that make one of the encoder's.
        """
        if self.time_prob:
            hidden = _spans(x.shape[0], x.shape[1], self.time_prob, self.time_length * together, x.device)
            x = torch.where(hidden[:, :, None], x.new_zeros(()) if mask is None else mask.to(x.dtype), x)
        if self.feature_prob:
            bands = _spans(x.shape[0], x.shape[2], self.feature_prob, self.feature_length, x.device)
            x = x.masked_fill(bands[:, None, :], 0.0)
        return x


def _spans(rows: int, size: int, share: float, length: int, device: torch.device) -> torch.Tensor:
    """Draw spans (rows, size) of a length, which may overlap, so many that about such a share lies in them."""
    starts = torch.rand((rows, size), device=device) < share / length
    spread = F.max_pool1d(F.pad(starts.float()[:, None], (length - 1, 0)), length, stride=1)
    return spread[:, 0] > 0


class _LayerDrop:
    """Drops a layer for some utterances (B, T', D) in training (LayerDrop, Fan et al. 2020), as a `Stack` does.

    Transformers skips the layer instead, which then has no gradient: of several devices each waits for those of the others.
    """

    def __init__(self) -> None:
        self.probability = 0.0

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if not (self.probability and layer.training):
            return output
        x = inputs[0]
        dropped = torch.rand(len(x), 1, 1, device=x.device) < self.probability
        if isinstance(output, tuple):
            return torch.where(dropped, x, output[0]), *output[1:]
        return torch.where(dropped, x, output)
