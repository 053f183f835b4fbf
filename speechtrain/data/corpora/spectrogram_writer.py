"""Writes a corpus as `data=featurised` reads it: spectrograms, tokens, and manifests of both and of the splits."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechtrain.config.overrides import override_text
from speechtrain.data.corpus import SPLITS, Corpus, Cut
from speechtrain.data.features.cache import SpectrumCache
from speechtrain.data.features.features import Features
from speechtrain.data.text.base import Tokenizer
from speechtrain.errors import DataError
from speechtrain.files import atomically, make_folder, write_json, write_text

_FOLDERS = ("split", "spectrogram_manifest", "token_manifest", "vocab", "spectrogram", "token")


def write_featurised(corpus: Corpus, cache: SpectrumCache, features: Features, tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Write the features of all utterances, before their augmentation, and their labels; return the overrides that read them.

    Spaces among the tokens are written as `<space>`, for the texts that are read are tokens with spaces between them.

    Args:
        corpus: the utterances.
        cache: their spectra.
        features: computes features from spectra.
        tokenizer: numbers the tokens from 1, and files from 0, with the blank behind the last.
        folder: the folder for all files, which appears whole or not at all; it is empty or not there.

    Raises:
        DataError: an utterance cannot be read or has no tokens, frames a second are no whole number, or tokens are white space.
        OSError: the folder cannot be written.
    """
    vocabulary = [token.replace(" ", "<space>").strip() for token in tokenizer.vocabulary[1:]]
    if len({*vocabulary, ""}) <= len(vocabulary):
        raise DataError("tokens of the vocabulary are white space, or differ only in it\n    -> set data.normalize or another tokenizer")
    rate = features.frame_rate
    if rate != int(rate):
        raise DataError(f"features have {rate:g} frames a second, which is no whole number\n    -> set features.hop to a part of a second")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        _Writer(cache, features, tokenizer, vocabulary, temporary).write(corpus)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    places = [f"data.{name}_dir={override_text(str(folder / name))}" for name in _FOLDERS]
    return ["data=featurised", *places, f"data.frame_rate={int(rate)}", "data.pad_value=null", "features.normalize=none"]


@dataclass(frozen=True)
class _Writer:
    """What the files of an utterance are made with, the tokens as they are written, and the folder of all files."""

    cache: SpectrumCache
    features: Features
    tokenizer: Tokenizer
    vocabulary: list[str]
    folder: Path

    def write(self, corpus: Corpus) -> None:
        """Write the manifests, the vocabulary and the files of every utterance."""
        write_text(self.folder / "vocab" / "phoneme_list.txt", "\n".join(self.vocabulary) + "\n")
        listed: list[dict[str, str]] = []
        for split in SPLITS:
            cuts = corpus.splits[split]
            parents = dict.fromkeys(_parent(cut) for cut in cuts)
            _write_manifest(self.folder / "split" / f"{split}.json", "audio", [{"id": parent} for parent in parents])
            for cut in cuts:
                self._write_utterance(cut)
                listed.append({"id": _file_name(cut.id), "parent_id": _parent(cut)})
        _write_manifest(self.folder / "spectrogram_manifest" / "manifest.json", "spectrogram", listed)
        _write_manifest(self.folder / "token_manifest" / "manifest.json", "tokens", listed)

    def _write_utterance(self, cut: Cut) -> None:
        """Write the features (bands, frames) of an utterance in float32, and its labels."""
        labels = [int(label) - 1 for label in self.tokenizer.encode(cut.text)]
        if not labels:
            raise DataError(f"{cut.id}: its text {cut.text[:40]!r} has no tokens\n    -> leave it out, or set data.empty_texts=skip")
        features = self.features.finish(self.features.mel(self.cache.spectrum(cut))).numpy().T
        target = self.folder / "spectrogram" / f"{_file_name(cut.id)}.npy"
        make_folder(target.parent)
        with atomically(target) as temporary, temporary.open("wb") as file:
            np.save(file, np.ascontiguousarray(features, dtype=np.float32))
        tokens = {"phonemes": [self.vocabulary[label] for label in labels], "tokens": labels}
        write_json(self.folder / "token" / f"{_file_name(cut.id)}.json", tokens)


def _file_name(name: str) -> str:
    """Return a name that a file can have for an utterance's id; a digest tells apart what would be the same."""
    plain = re.sub(r"[^\w.-]", "_", name).lstrip(".")
    if plain == name and len(name.encode()) < 200:
        return name
    return f"{plain[:40]}-{hashlib.blake2b(name.encode(), digest_size=6).hexdigest()}"


def _parent(cut: Cut) -> str:
    """Return what is never divided between splits: the recording that an utterance is a variant of, or itself."""
    return str(cut.custom.get("parent") or _file_name(cut.id))


def _write_manifest(path: Path, kind: str, samples: list[Any]) -> None:
    write_json(path, {"version": 1, "sample_type": kind, "samples": samples})
