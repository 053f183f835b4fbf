"""Pretrained encoders of Hugging Face's Transformers: wav2vec 2.0 and its relatives, W2V-BERT 2.0 and Parakeet (FastConformer).

Transformers computes what lies between the first convolutions and the head. Here is what it has not: an utterance in a padded batch gives
what it gives alone, and weights are read from their files without running anything of the checkpoint.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speechtrain.backends.torch import pretrained_attention
from speechtrain.backends.torch.encoder import Encoder, frame_mask, frame_weights
from speechtrain.backends.torch.models.wav2vec2 import norm_over_time, shorter, without_weight_norm
from speechtrain.backends.torch.pretrained_files import Weights, read_pretrained
from speechtrain.config.pretrained import Checkpoint, without_code
from speechtrain.config.schemas.models import PRETRAINED
from speechtrain.errors import ConfigError, Problem

log = logging.getLogger(__name__)

_PARAKEET, _BERT, _CONFORMER = "parakeet_ctc", "wav2vec2-bert", "wav2vec2-conformer"
_DROPOUTS = (
    *("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout", "dropout"),
    "conformer_conv_dropout",
)
_MOST_LAYERS, _MOST_WEIGHTS = 1000, 8_000_000_000
_FIX = "give a checkpoint whose config.json is whole, and of the same model as its other files"
_LORA_TARGETS = {"wavlm": ("intermediate_dense", "output_dense")}  # its attention takes weights, not layers
_LORA_TARGETS |= dict.fromkeys((_CONFORMER, _BERT), ("linear_q", "linear_v"))
_QUERIES_AND_VALUES = ("q_proj", "v_proj")


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
        self.net = _net(self.architecture, dropout)
        self.stages = _Stages()
        self.front: _Front = {_PARAKEET: _Parakeet, _BERT: _Bert}.get(self.kind, _Waveform)(self.net, input_size, self.stages)
        self._layer_drop = _LayerDrop()
        for layer in self.front.layers:
            layer.register_forward_hook(self._layer_drop)
        config = self.net.config
        self.output_size = int(config.output_hidden_size if getattr(config, "add_adapter", False) else config.hidden_size)
        self.subsampling, self.min_frames, self.receptive_field = self.front.subsampling, self.front.min_frames, None
        self.mask = None if self.kind == _PARAKEET else nn.Parameter(torch.empty(config.hidden_size).uniform_())
        if self.mask is not None and not mask_time_prob:  # several devices wait for the gradient of what is trained
            self.mask.requires_grad = False
        self.dropout = nn.Dropout(float(getattr(config, "final_dropout", 0.0)))
        self._choose_trained(train, freeze_extractor=freeze_extractor)
        if lora_rank is not None:
            targets = lora_targets or _LORA_TARGETS.get(self.kind, _QUERIES_AND_VALUES)
            _add_low_rank(self.net, lora_rank, lora_alpha, lora_dropout, targets)

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
        if self.kind == _CONFORMER:  # Transformers has it there, and does not use it
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


class _Stages:
    """Holds the lengths (B,) of the utterances of a batch, behind the first convolutions and behind each layer of an adapter."""

    def __init__(self) -> None:
        self.lengths: list[torch.Tensor] = []


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


class _ZeroBehind:
    """Sets the input (B, C, T) of a convolution to zero behind each utterance, where Transformers lets the padding leak into it."""

    def __init__(self, stages: _Stages, stage: int) -> None:
        self._stages, self._stage = stages, stage

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        return (x * frame_weights(self._stages.lengths[self._stage], x.shape[2], x.dtype)[:, None], *inputs[1:])


class _Front:
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


class _Waveform(_Front):
    """wav2vec 2.0, HuBERT, WavLM, data2vec and wav2vec 2.0 with conformer layers: convolutions of samples (B, T, 1)."""

    def __init__(self, net: Any, input_size: int, stages: _Stages) -> None:
        if input_size != 1:
            raise _other_input(input_size, "takes samples")
        self.net, self.stages = net, stages
        self.extractor, self.layers = net.feature_extractor, net.encoder.layers
        self.shapes = list(zip(net.config.conv_kernel, net.config.conv_stride, strict=True))
        if getattr(net.config, "do_stable_layer_norm", False) or net.config.model_type == _CONFORMER:
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


class _Bert(_Front):
    """W2V-BERT 2.0: mel energies (B, T, F), two frames of which are one for its layers; the last one alone is seen by no other."""

    def __init__(self, net: Any, input_size: int, stages: _Stages) -> None:
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


class _Parakeet(_Front):
    """Parakeet-CTC (Rekesh et al. 2023): mel energies (B, T, F), the last frame of which is behind the end of the recording.

    Transformers lets an encoder frame that holds nothing else see all frames alike; here all of its utterance, padded or not.
    """

    def __init__(self, net: Any, input_size: int, stages: _Stages) -> None:
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

    def __init__(self, module: Any, config: Any, stages: _Stages, padding: int) -> None:
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


def _adapter_of(net: Any, stages: _Stages) -> _Adapter:
    return _Adapter(getattr(net, "adapter", None), net.config, stages, 1)


def _other_input(size: int, takes: str) -> ConfigError:
    fix = f"set features=pretrained; if they are, {_FIX}"
    return ConfigError([Problem("features", f"have {size} values a frame, and the checkpoint {takes}", fix)])


def _net(architecture: Mapping[str, Any], dropout: float | None) -> Any:
    """Build the model of an architecture without its head, with weights drawn at random.

    Raises:
        ConfigError: Transformers cannot build it.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCTC

    pretrained_attention.register()
    kind = str(architecture["model_type"])
    # a bias for each pair of positions leaves nothing to fuse, and what exporters of ONNX cannot view
    attention = {_PARAKEET: pretrained_attention.PARAKEET, **dict.fromkeys(("wavlm", _BERT, _CONFORMER), "eager")}.get(kind, "sdpa")
    values = _without_masks(without_code(architecture))
    if dropout is not None:
        for part in (values, values.get("encoder_config", {})):
            part.update({name: dropout for name in _DROPOUTS if name in part or part is values})
    _check_sizes(values)
    try:
        config = CONFIG_MAPPING[kind].from_dict(values)
        if kind in (_BERT, _CONFORMER) and config.position_embeddings_type == "relative":
            attention = pretrained_attention.RELATIVE
        with torch.device("meta"):
            outline: Any = AutoModelForCTC.from_config(config, attn_implementation=attention)  # type: ignore[no-untyped-call]
        count = sum(each.numel() for each in (*outline.parameters(), *outline.buffers()))
        if count > _MOST_WEIGHTS:
            raise ValueError(f"it would have {count:,} weights, and {_MOST_WEIGHTS:,} are the most")
        whole: Any = AutoModelForCTC.from_config(config, attn_implementation=attention)  # type: ignore[no-untyped-call]
    except Exception as error:  # a config of any content meets all of Transformers here
        message = f"no {kind} can be built of it ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise ConfigError([Problem("model.architecture", message, _FIX)]) from error
    net: Any = whole.encoder if kind == _PARAKEET else getattr(whole, whole.base_model_prefix)
    for module in [each for each in net.modules() if nn.utils.parametrize.is_parametrized(each)]:
        without_weight_norm(module)
    pretrained_attention.replace_positions(net)
    if kind == "wavlm":
        from speechtrain.backends.torch.wavlm_attention import use_one_mask

        use_one_mask(net)
    return net


def _check_sizes(values: Mapping[str, Any]) -> None:
    """Check that layers can be built one by one, and that each convolution has a kernel and goes forward.

    Raises:
        ConfigError: they cannot.
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            _check_sizes(value)
        least, most = 1 if "kernel" in key or "stride" in key else -math.inf, _MOST_LAYERS if "layers" in key else math.inf
        sizes = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)]
        if wrong := [each for each in sizes if not least <= each <= most]:
            bound = f"{least} is the least" if wrong[0] < least else f"{most} is the most"
            raise ConfigError([Problem("model.architecture", f"asks for {key}={wrong[0]}, and {bound}", _FIX)])


def _without_masks(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return an architecture without masks and skipped layers of its own, which would not follow from the seed of a run."""
    values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in architecture.items()}
    values |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "apply_spec_augment": False, "layerdrop": 0.0}
    if isinstance(encoder := values.get("encoder_config"), dict):
        encoder["layerdrop"] = 0.0
    return values


def _add_low_rank(net: nn.Module, rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> None:
    """Add low-rank updates to linear layers, which alone are trained besides the head.

    Raises:
        ConfigError: no layer has one of the names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = sorted({name.rpartition(".")[2] for name, module in net.named_modules() if isinstance(module, nn.Linear)})
    if unknown := [name for name in targets if name not in names]:
        raise ConfigError([Problem("model.lora_targets", f"there is no linear layer {unknown[0]}", f"there is {', '.join(names)}")])
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
    inject_adapter_in_model(config, net)
