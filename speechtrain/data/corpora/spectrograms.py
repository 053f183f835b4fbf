"""`data=featurised`: spectrograms and tokens that other programs made, joined to a split by their parents.

    split_dir/train.json, val.json, test.json                          which parents belong to which part
    spectrogram_manifest_dir/*.json, spectrogram_dir/{id}.npy          float32 (mels, frames)
    token_manifest_dir/*.json, token_dir/{id}.json                     {"phonemes": [...], "tokens": [...]}, padded with the blank
    vocab_dir/phoneme_list.txt                                         one a line; the blank comes behind the last

A manifest is `{"version": 1, "sample_type": "...", "samples": [...]}`, or with `schema_version`. A sample is an id, or an object with
`id` (or `name`) and, if it was made from another sample, `parent_id` (or `parent_name`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechtrain.data.audio import Audio
from speechtrain.data.corpus import SPLITS, Corpus, Cut, Skip, make_cut
from speechtrain.data.text.tokenizers import read_vocabulary
from speechtrain.errors import DataError

_PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "eval")}
_IDS = ("id", "name", "sample_id")
_PARENTS = ("parent_id", "parent_name", "parent")


class Entry(NamedTuple):
    """A sample of a manifest; without a parent it is its own."""

    id: str
    parent: str


class Featurised:
    """A corpus of arrays.

    Args:
        split_dir, spectrogram_manifest_dir, token_manifest_dir, vocab_dir, spectrogram_dir, token_dir: folders, see above.
        frame_rate: frames a second of the spectrograms.
        pad_value: what fills a spectrogram up behind its end; frames at the end that hold nothing else are cut off. None: there are none.
    """

    def __init__(
        self,
        split_dir: str,
        spectrogram_manifest_dir: str,
        token_manifest_dir: str,
        vocab_dir: str,
        spectrogram_dir: str,
        token_dir: str,
        frame_rate: int,
        pad_value: float | None,
    ) -> None:
        self.split_dir = Path(split_dir).expanduser()
        self.manifests = {"spectrogram": Path(spectrogram_manifest_dir).expanduser(), "token": Path(token_manifest_dir).expanduser()}
        self.folders = {"spectrogram": Path(spectrogram_dir).expanduser(), "token": Path(token_dir).expanduser()}
        self.vocab_dir = Path(vocab_dir).expanduser()
        self.frame_rate = frame_rate
        self.pad_value = pad_value

    def load(self, limit: int | None) -> Corpus:
        """Join the manifests and read the tokens and the shape of every spectrogram.

        Raises:
            DataError: a manifest cannot be read, or a parent belongs to two parts.
        """
        vocabulary = read_vocabulary(self.vocab_dir / "phoneme_list.txt")
        parts = {part: self._parents(part) for part in SPLITS}
        _refuse_leaks(parts)
        spectrograms = _by_parent(self._samples("spectrogram"))
        tokens = {entry.id: entry for entry in self._samples("token")}
        tokens_of = _by_parent(tokens.values())
        skipped: list[Skip] = []
        splits = {}
        for part, parents in parts.items():
            cuts: list[Cut] = []
            for parent in parents:
                for entry in spectrograms.get(parent, []):
                    if limit is not None and len(cuts) >= limit:
                        break
                    try:
                        cuts.append(self._cut(entry, tokens, tokens_of, vocabulary))
                    except DataError as error:
                        skipped.append(Skip(part, entry.id, str(error)))
                if parent not in spectrograms:
                    skipped.append(Skip(part, parent, f"no spectrogram of it is listed in {self.manifests['spectrogram']}"))
            splits[part] = cuts
        return Corpus(splits, skipped, read=self.read)

    def read(self, cut: Cut, rate: int) -> Audio:  # noqa: ARG002
        """The spectrogram (frames, mels) of a cut, without padding.

        Raises:
            DataError: it holds NaN or infinite values.
        """
        values = self._spectrogram(cut.custom["file"])
        if not np.isfinite(values).all():
            raise DataError(f"{cut.custom['file']}: holds {int((~np.isfinite(values)).sum())} values that are NaN or infinite")
        return np.ascontiguousarray(values[:, : cut.num_samples].T, dtype=np.float32)

    def _parents(self, part: str) -> list[str]:
        names = [f"{name}{ending}" for name in _PARTS[part] for ending in (".json", "_split.json", "_manifest.json")]
        found = [self.split_dir / name for name in names if (self.split_dir / name).is_file()]
        if not found and part == "train":
            raise DataError(f"{self.split_dir}: holds no {names[0]}\n    -> set data.split_dir to the folder of the split's manifests")
        return [entry.parent for entry in _read_manifest(found[0])] if found else []

    def _samples(self, kind: str) -> list[Entry]:
        folder = self.manifests[kind]
        files = sorted(folder.glob("*.json"))
        if not files:
            raise DataError(
                f"{folder}: holds no manifest (*.json)\n    -> set data.{kind}_manifest_dir to the folder of the {kind} manifest"
            )
        return [entry for file in files for entry in _read_manifest(file)]

    def _cut(self, entry: Entry, tokens: Mapping[str, Entry], tokens_of: Mapping[str, list[Entry]], vocabulary: list[str]) -> Cut:
        of_same_parent = tokens_of.get(entry.parent, [])
        token = tokens.get(entry.id) or next(iter(tokens_of.get(entry.id, of_same_parent)), None)
        if token is None:
            raise DataError(f"no tokens of it, or of its parent '{entry.parent}', are listed in {self.manifests['token']}")
        path = self._file("spectrogram", f"{entry.id}.npy")
        phonemes = self._phonemes(self._file("token", f"{token.id}.json"), vocabulary)
        frames = self._frames(path)
        return make_cut(
            entry.id,
            None,
            num_samples=frames,
            sample_rate=self.frame_rate,
            text=" ".join(phonemes),
            speaker=None,
            custom={"file": str(path), "parent": entry.parent},
        )

    def _file(self, kind: str, name: str) -> Path:
        folder = self.folders[kind].absolute()
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"'{name}' leaves the folder {folder}")
        if not path.is_file():
            raise DataError(f"no such file: {path}")
        return path

    def _spectrogram(self, path: str | Path) -> Any:
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: is not an array that can be read ({str(error).splitlines()[0]})") from None
        if getattr(values, "ndim", 0) != 2 or not np.issubdtype(values.dtype, np.floating):
            raise DataError(f"{path}: must be float32 (mels, frames), received {values.dtype} {values.shape}")
        return values

    def _frames(self, path: Path) -> int:
        values = self._spectrogram(path)
        frames = int(values.shape[1])
        if self.pad_value is not None:
            filled = np.flatnonzero((values != self.pad_value).any(axis=0))
            frames = int(filled[-1]) + 1 if len(filled) else 0
        if frames == 0:
            raise DataError(f"{path}: holds no frames but padding")
        return frames

    def _phonemes(self, path: Path, vocabulary: list[str]) -> list[str]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tokens = content["tokens"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: must be an object with 'tokens' ({type(error).__name__}: {error})") from None
        blank = len(vocabulary)
        if not isinstance(tokens, list) or not all(isinstance(token, int) and 0 <= token <= blank for token in tokens):
            raise DataError(f"{path}: 'tokens' must be numbers from 0 to {blank} (the blank), received {str(tokens)[:60]}")
        while tokens and tokens[-1] == blank:
            tokens = tokens[:-1]
        if not tokens:
            raise DataError(f"{path}: holds no tokens but blanks")
        if blank in tokens:
            raise DataError(f"{path}: holds a blank ({blank}) before its end, at position {tokens.index(blank)}")
        phonemes = [vocabulary[token] for token in tokens]
        named = content.get("phonemes")
        if isinstance(named, list) and [str(each) for each in named[: len(phonemes)]] != phonemes:
            raise DataError(f"{path}: 'phonemes' and 'tokens' disagree: {named[:5]} and {phonemes[:5]}; the vocabulary is another one")
        return phonemes


def _read_manifest(path: Path) -> list[Entry]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is not JSON ({error})") from None
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list):
        raise DataError(f'{path}: must be {{"version": 1, "sample_type": ..., "samples": [...]}}, received {str(content)[:60]}')
    version = content.get("version", content.get("schema_version", 1))
    if not isinstance(version, (int, float, str)) or str(version).split(".")[0] not in ("1", "2"):
        raise DataError(f"{path}: version {version!r} is not known; there are 1 and 2")
    return [_entry(sample, path, number) for number, sample in enumerate(samples)]


def _entry(sample: Any, path: Path, number: int) -> Entry:
    if isinstance(sample, str):
        return Entry(sample, sample)
    if isinstance(sample, dict):
        found = next((str(sample[key]) for key in _IDS if sample.get(key) is not None), None)
        if found is not None:
            return Entry(found, next((str(sample[key]) for key in _PARENTS if sample.get(key) is not None), found))
    raise DataError(f"{path}: sample {number} must have an 'id' or a 'name', received {str(sample)[:60]}")


def _by_parent(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.parent, []).append(entry)
    return found


def _refuse_leaks(parts: Mapping[str, list[str]]) -> None:
    seen: dict[str, str] = {}
    for part, parents in parts.items():
        for parent in parents:
            if seen.setdefault(parent, part) != part:
                raise DataError(
                    f"parent '{parent}' belongs to {seen[parent]} and to {part}\n    -> make a split that keeps variants together"
                )
