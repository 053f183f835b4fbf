"""Tiny pretrained checkpoints of random weights, in the form in which Transformers writes them itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Make = Callable[..., Path]
"""The fixture `made`: a kind of `KINDS`, and `head`, to the folder of such a checkpoint."""

LETTERS = "|etaonihsrdlumwcfgypbvk'xjqz"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
VOCABULARY = {token: number for number, token in enumerate([*SPECIAL, *LETTERS])}
GERMAN = {token: number for number, token in enumerate([*SPECIAL, "|", "ä", "b", "c", "e"])}
KINDS = (
    *("wav2vec2", "wav2vec2_layer_norm", "wav2vec2_adapter", "hubert", "wavlm", "conformer", "data2vec"),
    *("bert", "bert_adapter", "parakeet", "mms", "conformer_rotary", "bert_relative", "hubert_batch_norm"),
)
"""What `make` knows: a kind of model, or a variant of one whose first convolutions or last ones differ."""

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WAVE = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "vocab_size": 32, "pad_token_id": 0}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2": ("wav2vec2", WAVE),
    "wav2vec2_layer_norm": ("wav2vec2", {**WAVE, **LAYER_NORM}),
    "wav2vec2_adapter": ("wav2vec2", {**WAVE, **LAYER_NORM, "add_adapter": True, "num_adapter_layers": 2}),
    "mms": ("wav2vec2", {**WAVE, **LAYER_NORM, "adapter_attn_dim": 4}),
    "hubert": ("hubert", WAVE),
    "wavlm": ("wavlm", WAVE),
    "conformer": ("wav2vec2-conformer", {**WAVE, "feat_extract_norm": "layer", "conv_depthwise_kernel_size": 5}),
    "data2vec": ("data2vec-audio", {**WAVE, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}),
}
MELS = {"conv_depthwise_kernel_size": 5, "left_max_position_embeddings": 8, "right_max_position_embeddings": 4}
CONFIGS["bert"] = ("wav2vec2-bert", {**MELS, "vocab_size": 32, "pad_token_id": 0, "output_hidden_size": 16})
CONFIGS["bert_relative"] = ("wav2vec2-bert", {**CONFIGS["bert"][1], "position_embeddings_type": "relative"})
CONFIGS["conformer_rotary"] = ("wav2vec2-conformer", {**CONFIGS["conformer"][1], "position_embeddings_type": "rotary"})
CONFIGS["hubert_batch_norm"] = ("hubert", {**WAVE, "conv_pos_batch_norm": True})
CONFIGS["bert_adapter"] = ("wav2vec2-bert", {**CONFIGS["bert"][1], "add_adapter": True, "num_adapter_layers": 2})


def make(kind: str, folder: Path, *, head: bool = True) -> Path:
    """Write a checkpoint of a kind with its processor; without a head it has learnt nothing but to encode."""
    from transformers import AutoModel, AutoModelForCTC, AutoProcessor  # noqa: F401 # imported when a test needs it

    torch.manual_seed(0)
    config = _config(kind)
    net = (AutoModelForCTC if head else AutoModel).from_config(config)
    for name, value in net.named_parameters():  # so that outputs differ, and nothing is hidden by zeros
        if name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.1)
        elif name.endswith("head.weight") or "subsampling" in name:
            torch.nn.init.normal_(value)
    net.save_pretrained(folder)
    _processor(kind, folder).save_pretrained(folder)
    if kind == "mms":
        _language(net, folder, "eng", len(VOCABULARY))
        _language(net, folder, "deu", len(GERMAN))
    return folder


def _config(kind: str) -> Any:
    from transformers import CONFIG_MAPPING

    if kind != "parakeet":
        name, values = CONFIGS[kind]
        return CONFIG_MAPPING[name](**SIZES, **values)
    encoder = CONFIG_MAPPING["parakeet_encoder"](**SIZES, num_mel_bins=80, subsampling_conv_channels=8, conv_kernel_size=5)
    return CONFIG_MAPPING["parakeet_ctc"](vocab_size=33, pad_token_id=32, encoder_config=encoder.to_dict())


def _processor(kind: str, folder: Path) -> Any:
    import transformers

    if kind == "parakeet":
        return transformers.ParakeetProcessor(transformers.ParakeetFeatureExtractor(), pieces())
    vocabulary: dict[str, Any] = {"eng": VOCABULARY, "deu": GERMAN} if kind == "mms" else VOCABULARY
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), target_lang="eng" if kind == "mms" else None)
    if kind.startswith("bert"):
        return transformers.Wav2Vec2BertProcessor(transformers.SeamlessM4TFeatureExtractor(padding_value=1.0), tokenizer)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=kind != "hubert", return_attention_mask="norm" in kind)
    return transformers.Wav2Vec2Processor(extractor, tokenizer)


def pieces() -> Any:
    """Make a tokenizer of pieces of words, whose blank is the last of its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import ParakeetTokenizer

    known = ["<unk>", "▁", "▁a", "▁t", "th", "▁th", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {piece: number for number, piece in enumerate([*known, "<pad>"])}
    merges = [("▁", "a"), ("▁", "t"), ("t", "h"), ("▁t", "h")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return ParakeetTokenizer(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


def _language(net: Any, folder: Path, language: str, tokens: int) -> None:
    """Write the adapter of a language, which has a head of its own."""
    from safetensors.torch import save_file

    shapes = {name: value.shape for name, value in net._get_adapters().items()}
    sizes = {name: (tokens, *shape[1:]) if name.startswith("lm_head") else tuple(shape) for name, shape in shapes.items()}
    save_file({name: torch.randn(size) for name, size in sizes.items()}, folder / f"adapter.{language}.safetensors")


def recordings() -> list[Any]:
    """Ten recordings, with lengths at which a last frame of mel energies is whole, half, and behind the end."""
    rng = np.random.default_rng(0)
    lengths = (5000, 5120, 5280, 6400, 7777, 9000, 10240, 11520, 12345, 16000)
    return [np.round(rng.normal(0, 0.1, length).clip(-0.9, 0.9) * 32768).astype(np.float32) / 32768 for length in lengths]


def encoder(folder: Path | str, *options: str) -> Any:
    """The encoder of a checkpoint, without its weights."""
    from speechtrain import compose
    from speechtrain.config.build import build

    torch.manual_seed(0)
    cfg = compose(["model=pretrained", f"model.path={folder}", *options])
    return build("model", cfg.model, input_size=build("features", cfg.features).size)
