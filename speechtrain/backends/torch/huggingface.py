"""Encoders that Transformers knows, back in its form: a folder with `config.json` and safetensors, and how it is opened again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from speechtrain.backends.torch.models.pretrained import Pretrained
from speechtrain.backends.torch.models.wav2vec2 import Wav2Vec2
from speechtrain.backends.torch.pretrained_files import prefix_of
from speechtrain.backends.torch.speech_model import SpeechModel
from speechtrain.config.pretrained import without_code

Function = Callable[[npt.NDArray[np.float32], npt.NDArray[np.int64]], tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]

_NAMES = (
    (r"extractor\.(\d+)\.(.*)", r"feature_extractor.conv_layers.\1.\2"),
    (r"projection\.(.*)", r"feature_projection.\1"),
    (r"positions\.(.*)", r"encoder.pos_conv_embed.\1"),
    (r"norm\.(.*)", r"encoder.layer_norm.\1"),
    (r"layers\.(\d+)\.layer\.(.*)", r"encoder.layers.\1.\2"),
    (r"mask", "masked_spec_embed"),
)
"""What Transformers calls the weights of `model=wav2vec2`."""


def write_folder(model: SpeechModel, folder: Path, outputs: list[int]) -> None:
    """Write a model as `save_pretrained` does.

    Args:
        model: the model.
        folder: the folder, which is there.
        outputs: for each value of the model's head the number of the output that it is to be there; the first is the blank's.

    Raises:
        NotImplementedError: Transformers has no such model.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCTC

    encoder = model.encoder
    if isinstance(encoder, Pretrained):
        architecture, weights = dict(encoder.architecture), dict(_of_pretrained(encoder))
    elif isinstance(encoder, Wav2Vec2):
        architecture, weights = _architecture_of(encoder), dict(_of_wav2vec2(encoder))
    else:
        raise NotImplementedError(f"Transformers has no {type(encoder).__name__}; take model=pretrained or model=wav2vec2")
    kind = str(architecture["model_type"])
    config = CONFIG_MAPPING[kind].from_dict({**without_code(architecture), "vocab_size": len(outputs), "pad_token_id": outputs[0]})
    net: Any = AutoModelForCTC.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    own = net.state_dict()
    state = {f"{prefix_of(kind)}{name}": value for name, value in weights.items()}
    state |= dict(_with_weight_norm(own, state))
    head = "ctc_head" if "ctc_head.weight" in own else "lm_head"
    order = torch.tensor(outputs).argsort()
    state[f"{head}.weight"] = model.head.weight.detach()[order].reshape(own[f"{head}.weight"].shape)
    state[f"{head}.bias"] = model.head.bias.detach()[order]
    _check_names(own, state, kind)
    net.load_state_dict({name: state.get(name, value).to("cpu", torch.float32) for name, value in own.items()})
    with _quietly():
        net.save_pretrained(folder)


def _check_names(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], kind: str) -> None:
    """Check that a model of Transformers gets all of its weights, and all of ours; a mask is used in training alone.

    Raises:
        NotImplementedError: it does not.
    """
    with_norm = {name.replace("parametrizations.weight.original0", "weight") for name in own}
    odd = [name for name in {*own} ^ {*state} if not name.endswith("masked_spec_embed") and name not in with_norm - {*own}]
    if odd:
        raise NotImplementedError(f"the weight {min(odd)} of {kind} is not in both our model and the one of Transformers")


@contextmanager
def _quietly() -> Iterator[None]:
    """Hold back the progress bars of Transformers, which are of no use for a folder."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _of_pretrained(encoder: Pretrained) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of a pretrained encoder by their names, with low-rank updates added to what they update."""
    updated = {name: module for name, module in encoder.net.named_modules() if hasattr(module, "get_delta_weight")}
    for name, value in encoder.net.state_dict().items():
        layer = name.partition(".base_layer.")[0]
        if name.endswith(".base_layer.weight") and layer in updated:
            yield name.replace(".base_layer.", "."), value + updated[layer].get_delta_weight("default").detach()
        elif ".lora_" not in name:
            yield name.replace(".base_layer.", "."), value
    if encoder.mask is not None:
        yield "masked_spec_embed", encoder.mask.detach()


def _of_wav2vec2(encoder: Wav2Vec2) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of our own encoder by the names that Transformers has for them."""
    for name, value in encoder.state_dict().items():
        for pattern, theirs in _NAMES:
            if re.fullmatch(pattern, name):
                yield re.sub(pattern, theirs, name, count=1), value
                break


def _architecture_of(encoder: Wav2Vec2) -> dict[str, Any]:
    """Return the `config.json` of our own encoder."""
    shape = encoder.shape
    channels, kernels, strides = zip(*shape["extractor_conv_layer_config"], strict=True)
    return {
        "model_type": "wav2vec2",
        "conv_dim": list(channels),
        "conv_kernel": list(kernels),
        "conv_stride": list(strides),
        "conv_bias": bool(shape["extractor_conv_bias"]),
        "num_feat_extract_layers": len(channels),
        "feat_extract_norm": str(shape["extractor_mode"]).removesuffix("_norm"),
        "hidden_size": shape["encoder_embed_dim"],
        "num_hidden_layers": shape["encoder_num_layers"],
        "num_attention_heads": shape["encoder_num_heads"],
        "intermediate_size": shape["encoder_ff_interm_features"],
        "num_conv_pos_embeddings": shape["encoder_pos_conv_kernel"],
        "num_conv_pos_embedding_groups": shape["encoder_pos_conv_groups"],
        "do_stable_layer_norm": not encoder.norm_first,
        "mask_time_prob": encoder.mask_prob or 0.05,  # of zero it has no frame to hide others behind
        "mask_time_length": encoder.mask_length,
    }


def _with_weight_norm(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield length and direction of the weights that Transformers has with weight norm."""
    for name in own:
        if name.endswith(".parametrizations.weight.original0"):
            stem = name.removesuffix("parametrizations.weight.original0")
            if (weight := state.get(f"{stem}weight")) is not None:
                yield name, weight.norm(dim=(0, 1), keepdim=True)
                yield f"{stem}parametrizations.weight.original1", weight


def open_folder(folder: Path) -> Function:
    """Open a folder of `write_folder` as Transformers does: features (B, T, F), lengths (B,) -> log-probabilities (B, T', V), lengths (B,).

    Each utterance is computed alone: in a padded batch Transformers does not give what it gives alone.
    """
    from transformers import AutoModelForCTC

    with _quietly():
        net: Any = AutoModelForCTC.from_pretrained(folder, local_files_only=True, trust_remote_code=False).eval()
    blank = int(net.config.pad_token_id)
    order = [blank, *(number for number in range(net.config.vocab_size) if number != blank)]
    joined = int(getattr(net.config, "feature_projection_input_dim", 0))

    def one(features: torch.Tensor) -> torch.Tensor:
        seen = len(features)
        if net.main_input_name == "input_values":
            inputs = features[None, :, 0]
        elif joined:
            frames = joined // features.shape[1]
            features = torch.nn.functional.pad(features, (0, 0, 0, -len(features) % frames))
            inputs, seen = features.reshape(1, -1, joined), seen // frames
        else:
            inputs, seen = features[None], seen - 1
        attended = (torch.arange(inputs.shape[1]) < seen)[None].long()
        values: torch.Tensor = net(inputs, attention_mask=attended).logits[0].log_softmax(-1)[:, order]
        return values

    def run(features: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        with torch.inference_mode():
            rows = [one(torch.from_numpy(row[:length])) for row, length in zip(features, lengths, strict=True)]
        values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return values.numpy(), np.array([len(row) for row in rows], dtype=np.int64)

    return run
