"""`format=huggingface`: a folder that Transformers' pipeline of speech recognition loads, with a model card."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from speechtrain.config.checkpoint_values import with_hub_names, without_checkpoint_files
from speechtrain.config.experiment import ExperimentConfig, class_name
from speechtrain.config.hub import HUB
from speechtrain.data.text.base import BLANK
from speechtrain.errors import UserError
from speechtrain.files import is_folder, make_folder, user_path, write_json, write_text
from speechtrain.inference.replacement import Replacement, enumerated

if TYPE_CHECKING:
    from speechtrain.inference.recognizer import Recognizer

log = logging.getLogger(__name__)

NAME = "huggingface"
"""The name of the format, and of the folder."""
_CARD = "README.md"
_LIST = ".speechtrain"
"""Name of the file with the names and checksums of what the last export wrote."""

_TAGS = f"tags: {json.dumps(['ctc', 'speechtrain'])}"
_IN_THE_CARD = ("model", "features", "tokenizer", "augment", "task", "optimizer", "scheduler", "trainer")
"""The groups of the config that a model card shows: they say nothing of places, services and other files."""

_OF = "of "  # as `without_checkpoint_files` begins

_PAD, _UNKNOWN = "<pad>", "<unk>"
_SPACE = "|"  # as Transformers writes it, whatever `word_delimiter_token` in a file says


def outputs_of(recognizer: Recognizer) -> list[int]:
    """Return for each label of a model the number that it has in the folder: those of a pretrained head stay what they were."""
    tokenizer = recognizer.tokenizer
    return list(range(len(tokenizer.vocabulary)) if tokenizer.outputs is None else tokenizer.outputs)


def write_processor(recognizer: Recognizer, folder: Path) -> None:
    """Write how audio becomes the model's input, and its outputs text.

    Raises:
        UserError: Transformers has no counterpart of the tokenizer or the features.
    """
    cfg = recognizer.cfg
    for name, content in {**_tokenizer_files(cfg, recognizer.tokenizer.vocabulary), "preprocessor_config.json": _extractor(cfg)}.items():
        if isinstance(content, str):
            write_text(folder / name, content)
        else:
            write_json(folder / name, content)


def _extractor(cfg: ExperimentConfig) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`."""
    kind = class_name(cfg.features)
    if kind == "PretrainedFeatures":
        return dict(cfg.features["extractor"])
    if kind != "Waveform":
        raise UserError(f"{NAME}: features={kind} have no counterpart in Transformers\n    -> train with features=waveform or pretrained")
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": cfg.features["normalize"] == "utterance",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": cfg.features["sample_rate"],
    }


def _tokenizer_files(cfg: ExperimentConfig, vocabulary: Sequence[str]) -> dict[str, dict[str, Any] | str]:
    """Return the files that describe the tokens, by their names.

    Raises:
        UserError: Transformers has no counterpart.
    """
    kind = class_name(cfg.tokenizer)
    if kind == "PretrainedTokenizer":
        return _of_definition(cfg.tokenizer["definition"])
    if kind == "BpeTokenizer":
        return {"tokenizer.json": _pieces(vocabulary), "tokenizer_config.json": _of_pieces({"pad_token": _PAD, "unk_token": _UNKNOWN})}
    if kind != "CharTokenizer":
        message = f"{NAME}: Transformers' tokenizers for CTC have no counterpart of {kind}"
        raise UserError(f"{message}\n    -> choose another format, or train with tokenizer=char, bpe or pretrained")
    if _SPACE in vocabulary:
        message = f"{NAME}: the vocabulary has {_SPACE!r}, which stands for the space in Transformers"
        raise UserError(f"{message}\n    -> choose another format, or leave the character out by data.normalize")
    labels = {_PAD: BLANK} | {_SPACE if each == " " else each: label for label, each in enumerate(vocabulary) if label != BLANK}
    config = _of_characters({"pad_token": _PAD, "unk_token": _UNKNOWN, "bos_token": None, "eos_token": None}, _SPACE)
    return {"vocab.json": labels, "tokenizer_config.json": config}


def _of_definition(definition: Mapping[str, Any]) -> dict[str, dict[str, Any] | str]:
    """Return the files of a pretrained vocabulary as it was."""
    special = dict(definition["special"])
    if definition["pieces"]:
        return {"tokenizer.json": str(definition["pieces"]), "tokenizer_config.json": _of_pieces(special)}
    numbers: dict[str, Any] = {}
    for number, token in enumerate(definition["tokens"]):
        numbers.setdefault(token, number)
    config = _of_characters(special, definition["delimiter"])
    config |= {"do_lower_case": definition["lowercase"], "clean_up_tokenization_spaces": definition["clean_up"]}
    return {"vocab.json": numbers, "tokenizer_config.json": config}


def _of_characters(special: Mapping[str, str | None], delimiter: str) -> dict[str, Any]:
    return {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": delimiter, "do_lower_case": False, **special}


def _of_pieces(special: Mapping[str, str | None]) -> dict[str, Any]:
    return {"tokenizer_class": "ParakeetTokenizer", "clean_up_tokenization_spaces": False, **special}


def _pieces(vocabulary: Sequence[str]) -> str:
    """Return the `tokenizer.json` of pieces of words: what is joined first has the lower number, as SentencePiece has them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    numbers = {_PAD: BLANK} | {piece: label for label, piece in enumerate(vocabulary) if label != BLANK}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in vocabulary[1:]
        for cut in range(1, len(piece))
        if piece[:cut] in numbers and piece[cut:] in numbers
    ]
    tokenizer = Tokenizer(models.BPE(vocab={**numbers, _UNKNOWN: len(numbers)}, merges=merges, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Replace(Regex(" +"), " "), decoders.Strip(" ", 1, 1)]
    tokenizer.decoder = decoders.Sequence(steps)
    return str(tokenizer.to_str())


@dataclass(frozen=True)
class Card:
    """What a model card says beside the config.

    Attributes:
        name: of the model.
        data: the class of the corpus that it was trained on; None: it was not trained here.
        scores: metrics by their names.
        measured_on: what they were measured on.
    """

    name: str
    data: str | None
    scores: Mapping[str, float]
    measured_on: str


def write_card(recognizer: Recognizer, folder: Path, card: Card) -> None:
    """Write the model card, README.md: what the model was trained on, how good it is, and its config."""
    cfg = with_hub_names(recognizer.cfg)
    base = str(cfg.model.get("path") or "").removeprefix(HUB)
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "automatic-speech-recognition"}
    if base and not is_folder(user_path(base)) and not Path(base).is_absolute():
        head["base_model"] = base
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), _TAGS, "---", "", f"# {card.name}", "", "```python"]
    lines += ["from transformers import pipeline", "", 'recognize = pipeline("automatic-speech-recognition", "THIS FOLDER")']
    lines += ['print(recognize("recording.wav")["text"])', "```", ""]
    if card.data is not None:
        lines += [
            "## Data",
            "",
            f"Trained by speechtrain on {card.data}, with audio at {recognizer.sample_rate} Hz; the config below has all keys.",
            "",
        ]
    rates = [(name, value) for name, value in card.scores.items() if name in ("cer", "wer", "per")]
    lines += ["## Scores", "", f"On {card.measured_on}, with {class_name(cfg.decoder)}:", "", "| metric | value |", "|---|---|"]
    lines += [
        *(f"| {name.upper()} | {100 * value:.2f} % |" for name, value in rates),
        "",
        "## Config",
        "",
        "```yaml",
        _short_config(cfg),
        "```",
        "",
    ]
    write_text(folder / _CARD, "\n".join(lines))


def _short_config(cfg: ExperimentConfig) -> str:
    """Return what the model and its training were, without what is in the other files of the folder, and without places on this machine."""
    values = without_checkpoint_files(cfg.as_dict())
    shown = {group: _without_places(values[group]) for group in _IN_THE_CARD if isinstance(values.get(group), Mapping)}
    return OmegaConf.to_yaml(OmegaConf.create(shown)).strip()


def _without_places(value: Any) -> Any:
    """Return a value of a config in which of each path on this machine only the last part is left."""
    if isinstance(value, Mapping):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if not isinstance(value, str):
        return value
    before, text = (_OF, value.removeprefix(_OF)) if value.startswith(_OF) else ("", value)
    return f"{before}{Path(text).name}" if text.startswith(("/", "~")) else value


def put_in_place(folder: Path, path: Path) -> None:
    """Put new files in place of those that an earlier export wrote; a model card that was changed stays, and whatever was added.

    Raises:
        UserError: other files were changed, or are not of an earlier export: beside new ones of the rest they are of no use.
        OSError: the folder cannot be written.
    """
    make_folder(path)
    replacement = Replacement.plan(path, folder, _LIST)
    if others := [name for name in replacement.others if name != _CARD]:
        message = f"{NAME}: {path} has files that were changed, or not written by an earlier export: {enumerated(others)}"
        raise UserError(f"{message}\n    -> remove them, or set out to another folder")
    if replacement.others:
        log.warning("%s was changed, or not written by an earlier export, and stays as it is", path / _CARD)
    replacement.carry_out()
