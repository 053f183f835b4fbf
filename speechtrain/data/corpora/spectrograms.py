"""`data=featurised`: spectrograms and tokens that other programs made, assigned to splits by their parents.

    split_dir/train.json, val.json, test.json                          which parents belong to which part
    spectrogram_manifest_dir/*.json, spectrogram_dir/{id}.npy          float32 (mels, frames)
    token_manifest_dir/*.json, token_dir/{id}.json                     {"phonemes": [...], "tokens": [...]}, padded with the blank
    vocab_dir/phoneme_list.txt                                         one a line; the blank is numbered after the last

A manifest is `{"version": 1, "sample_type": "...", "samples": [...]}`, or with `schema_version`. A sample is an id, or an object with
`id` (or `name`) and, if it was made from another sample, `parent_id` (or `parent_name`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from speechtrain.data.arrays import read_array
from speechtrain.data.audio import Audio
from speechtrain.data.corpus import SPLITS, Corpus, Cut, Skip, make_cut
from speechtrain.data.text.lines import read_json
from speechtrain.data.text.tokenizers import read_vocabulary
from speechtrain.errors import DataError, first_line
from speechtrain.files import is_file, open_regular, user_path

_SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "eval")}
_IDS = ("id", "name", "sample_id")
_PARENTS = ("parent_id", "parent_name", "parent")


class ManifestSample(NamedTuple):
    """A sample of a manifest; one without a parent is its own."""

    id: str
    parent: str


class _Manifests(NamedTuple):
    """What the manifests list of spectrograms and tokens.

    Attributes:
        spectrograms: samples with a spectrogram, by parent.
        tokens: samples with tokens, by id.
        tokens_of_parent: samples with tokens, by parent.
        vocabulary: phonemes in the order of their numbers.
    """

    spectrograms: Mapping[str, Sequence[ManifestSample]]
    tokens: Mapping[str, ManifestSample]
    tokens_of_parent: Mapping[str, Sequence[ManifestSample]]
    vocabulary: Sequence[str]


class Featurised:
    """A corpus of spectrograms that another program made.

    Args:
        split_dir, spectrogram_manifest_dir, token_manifest_dir, vocab_dir, spectrogram_dir, token_dir: folders; see the module.
        frame_rate: frames a second of the spectrograms.
        pad_value: value that spectrograms are padded with; frames at the end that hold nothing else are cut off. None: there is no padding.
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
        self.split_dir = user_path(split_dir)
        self.manifests = {"spectrogram": user_path(spectrogram_manifest_dir), "token": user_path(token_manifest_dir)}
        self.folders = {"spectrogram": user_path(spectrogram_dir), "token": user_path(token_dir)}
        self.vocab_dir = user_path(vocab_dir)
        self.frame_rate = frame_rate
        self.pad_value = pad_value

    def load(self, limit: int | None) -> Corpus:
        """Join the manifests and read the tokens and the shape of every spectrogram.

        Raises:
            DataError: a manifest cannot be read, or a parent belongs to two parts.
        """
        vocabulary = read_vocabulary(self.vocab_dir / "phoneme_list.txt")
        parents = {split: self._parents(split) for split in SPLITS}
        _refuse_shared_parents(parents)
        tokens = {sample.id: sample for sample in self._samples("token")}
        listed = _Manifests(_by_parent(self._samples("spectrogram")), tokens, _by_parent(tokens.values()), vocabulary)
        skipped: list[Skip] = []
        splits = {split: self._cuts(split, parents[split], listed, limit, skipped) for split in SPLITS}
        return Corpus({**splits}, skipped, read=self.read)

    def _cuts(self, split: str, parents: Sequence[str], listed: _Manifests, limit: int | None, skipped: list[Skip]) -> list[Cut]:
        """Return the utterances of a split, at most `limit`: all spectrograms of its parents."""
        cuts: list[Cut] = []
        for parent in parents:
            for sample in listed.spectrograms.get(parent, []):
                if limit is not None and len(cuts) >= limit:
                    break
                try:
                    cuts.append(self._cut(sample, listed))
                except DataError as error:
                    skipped.append(Skip(split, sample.id, str(error)))
            if parent not in listed.spectrograms:
                skipped.append(Skip(split, parent, f"no spectrogram of it is listed in {self.manifests['spectrogram']}"))
        return cuts

    def read(self, cut: Cut, rate: int) -> Audio:  # noqa: ARG002
        """Read the spectrogram (frames, mels) of an utterance, without padding.

        Raises:
            DataError: it holds NaN or infinite values.
        """
        values = self._spectrogram(cut.custom["file"])
        if not np.isfinite(values).all():
            raise DataError(f"{cut.custom['file']}: holds {int((~np.isfinite(values)).sum())} values that are NaN or infinite")
        return np.ascontiguousarray(values[:, : cut.num_samples].T, dtype=np.float32)

    def _parents(self, split: str) -> list[str]:
        """Return the parents that belong to a split."""
        names = [f"{name}{ending}" for name in _SPLIT_NAMES[split] for ending in (".json", "_split.json", "_manifest.json")]
        manifests = [self.split_dir / name for name in names if is_file(self.split_dir / name)]
        if not manifests and split == "train":
            raise DataError(f"{self.split_dir}: holds no {names[0]}\n    -> set data.split_dir to the folder of the split's manifests")
        return [sample.parent for sample in _read_manifest(manifests[0])] if manifests else []

    def _samples(self, kind: str) -> list[ManifestSample]:
        """Return the samples of all manifests of a kind, `spectrogram` or `token`."""
        folder = self.manifests[kind]
        files = sorted(folder.glob("*.json"))
        if not files:
            raise DataError(
                f"{folder}: holds no manifest (*.json)\n    -> set data.{kind}_manifest_dir to the folder of the {kind} manifest"
            )
        return [sample for file in files for sample in _read_manifest(file)]

    def _cut(self, sample: ManifestSample, listed: _Manifests) -> Cut:
        """Return the utterance of a spectrogram, with its own tokens or those of its parent."""
        of_same_parent = listed.tokens_of_parent.get(sample.parent, [])
        token = listed.tokens.get(sample.id) or next(iter(listed.tokens_of_parent.get(sample.id, of_same_parent)), None)
        if token is None:
            raise DataError(f"no tokens of it, or of its parent '{sample.parent}', are listed in {self.manifests['token']}")
        path = self._file("spectrogram", f"{sample.id}.npy")
        phonemes = self._phonemes(self._file("token", f"{token.id}.json"), listed.vocabulary)
        frames = self._frames(path)
        return make_cut(
            sample.id,
            None,
            num_samples=frames,
            sample_rate=self.frame_rate,
            text=" ".join(phonemes),
            speaker=None,
            custom={"file": str(path), "parent": sample.parent},
        )

    def _file(self, kind: str, name: str) -> Path:
        """Find a file of a kind, which must be inside its folder."""
        folder = self.folders[kind].absolute()
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"'{name}' leaves the folder {folder}")
        if not is_file(path):
            raise DataError(f"no such file: {path}")
        return path

    def _spectrogram(self, path: str | Path) -> npt.NDArray[np.floating[Any]]:
        """Read a spectrogram (mels, frames) with its padding."""
        try:
            with open_regular(Path(path)) as file:
                values = read_array(file)
        except (OSError, ValueError, TypeError, MemoryError) as error:
            raise DataError(f"{path}: is not an array that can be read ({first_line(error)})") from None
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.floating):
            raise DataError(f"{path}: must be float32 (mels, frames), received {values.dtype} {values.shape}")
        spectrogram: npt.NDArray[np.floating[Any]] = values
        return spectrogram

    def _frames(self, path: Path) -> int:
        """Count the frames of a spectrogram without its padding."""
        values = self._spectrogram(path)
        frames = int(values.shape[1])
        if self.pad_value is not None:
            filled = np.flatnonzero((values != self.pad_value).any(axis=0))
            frames = int(filled[-1]) + 1 if len(filled) else 0
        if frames == 0:
            raise DataError(f"{path}: holds no frames but padding")
        return frames

    def _phonemes(self, path: Path, vocabulary: Sequence[str]) -> list[str]:
        """Read the phonemes of a file of tokens without its padding."""
        content = read_json(path)
        if not isinstance(content, dict) or "tokens" not in content:
            raise DataError(f"{path}: must be an object with 'tokens', received {content!r:.60}")
        tokens = content["tokens"]
        blank = len(vocabulary)
        if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token <= blank for token in tokens):
            raise DataError(f"{path}: 'tokens' must be numbers from 0 to {blank} (the blank), received {str(tokens)[:60]}")
        while tokens and tokens[-1] == blank:
            tokens = tokens[:-1]
        if not tokens:
            raise DataError(f"{path}: holds no tokens but blanks")
        if blank in tokens:
            raise DataError(f"{path}: holds a blank ({blank}) before its end, at position {tokens.index(blank)}")
        phonemes = [vocabulary[token] for token in tokens]
        stated = content.get("phonemes")
        if isinstance(stated, list) and [str(each) for each in stated[: len(phonemes)]] != phonemes:
            raise DataError(f"{path}: 'phonemes' and 'tokens' disagree: {stated[:5]} and {phonemes[:5]}; the vocabulary is another one")
        return phonemes


def _read_manifest(path: Path) -> list[ManifestSample]:
    """Read the samples of a manifest."""
    content = read_json(path)
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list):
        raise DataError(f'{path}: must be {{"version": 1, "sample_type": ..., "samples": [...]}}, received {content!r:.60}')
    version = content.get("version", content.get("schema_version", 1))
    if not isinstance(version, (int, float, str)) or str(version).split(".")[0] not in ("1", "2"):
        raise DataError(f"{path}: unknown version {version!r:.60}; there are 1 and 2")
    return [_sample(value, path, number) for number, value in enumerate(samples)]


def _sample(value: Any, path: Path, number: int) -> ManifestSample:
    """Return the sample that an id, or an object with an id, stands for."""
    if isinstance(value, str):
        return ManifestSample(value, value)
    if isinstance(value, dict):
        name = next((str(value[key]) for key in _IDS if isinstance(value.get(key), (str, int))), None)
        if name is not None:
            return ManifestSample(name, next((str(value[key]) for key in _PARENTS if isinstance(value.get(key), (str, int))), name))
    raise DataError(f"{path}: sample {number} must have an 'id' or a 'name', received {str(value)[:60]}")


def _by_parent(samples: Iterable[ManifestSample]) -> dict[str, list[ManifestSample]]:
    groups: dict[str, list[ManifestSample]] = {}
    for sample in samples:
        groups.setdefault(sample.parent, []).append(sample)
    return groups


def _refuse_shared_parents(parents_of: Mapping[str, Sequence[str]]) -> None:
    """Check that each parent belongs to one split only."""
    split_of: dict[str, str] = {}
    for split, parents in parents_of.items():
        for parent in parents:
            if split_of.setdefault(parent, split) != split:
                raise DataError(
                    f"parent '{parent}' belongs to {split_of[parent]} and to {split}\n    -> make a split that keeps variants together"
                )
