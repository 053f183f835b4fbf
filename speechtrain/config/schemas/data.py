"""Schemas of corpora, and of how any of them is read and batched."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from omegaconf import MISSING

from speechtrain.addresses import masked
from speechtrain.config.extras import needed
from speechtrain.config.schemas.node import HIGHEST_RATE, Node, Rule, Target, choice, number
from speechtrain.files import is_file, is_folder, user_path


@dataclass
class OnShared(Node):
    speaker: str = choice("allow", "warn", "error")
    parent: str = choice("allow", "warn", "error")
    audio: str = choice("allow", "warn", "error")


@dataclass
class Loading(Target):
    """How any corpus is read and batched; these keys are not passed to `_target_`."""

    batch_seconds: float = number(ge=0.01)
    batch_size: int | None = number(ge=1, most=1_000_000)
    num_buckets: int = number(ge=1, most=10_000)
    num_workers: int = number(ge=0, most=1024)
    cache_gb: float = number(ge=0)
    check_hours: float = number(ge=0)
    feature_cache: str | None = MISSING
    feature_cache_gb: float = number(gt=0)
    min_duration: float = number(ge=0)
    max_duration: float | None = number(gt=0)
    channel: int | None = number(ge=0, most=1024)
    limit_utterances: int | None = number(ge=1)
    folds: int | None = number(ge=2, most=10_000)
    fold: int | None = number(ge=0)
    fold_by: str = choice("speaker", "parent", "utterance")
    normalize: list[str] = MISSING
    on_shared: OnShared = field(default_factory=OnShared)
    on_bad: str = choice("skip", "error")
    empty_texts: str = choice("skip", "evaluate", "train")
    on_empty: str = choice("error", "warn")

    def rules(self) -> Iterator[Rule]:
        if any(step.partition(":")[0] == "numbers" for step in self.normalize):
            yield from needed("normalize", ("num2words",))
        if self.fold is not None and (self.folds is None or self.fold >= self.folds):
            fix = "leave data.fold out to train all folds" if self.folds else "set data.folds as well"
            yield "fold", f"is {self.fold}, and there are {self.folds or 'no'} folds, counted from 0", fix


LOADING_KEYS = frozenset(f.name for f in dataclasses.fields(Loading)) - {"_target_"}


@dataclass
class Generated(Loading):
    """A corpus that is generated when a run begins."""

    seed: int = number(ge=0, most=2**63)
    train_size: int = number(ge=1, most=10_000_000)
    val_size: int = number(ge=1, most=10_000_000)
    test_size: int = number(ge=1, most=10_000_000)
    sample_rate: int = number(ge=1000, most=HIGHEST_RATE)


@dataclass
class Digits(Generated):
    cache_dir: str = MISSING
    min_words: int = number(ge=1, most=10_000)
    max_words: int = number(ge=1, most=10_000)
    processes: int | None = number(ge=1, most=1024)

    def rules(self) -> Iterator[Rule]:
        if not is_folder(user_path(self.cache_dir) / "digits"):  # what was spoken before needs no voice
            yield from needed("", ("espeakng_loader",))
        if self.min_words > self.max_words:
            yield "min_words", f"is {self.min_words}, more than max_words={self.max_words}", "set data.min_words to at most data.max_words"


@dataclass
class Synthetic(Generated):
    alphabet: str = MISSING
    min_chars: int = number(ge=1, most=10_000)
    max_chars: int = number(ge=1, most=10_000)
    snr_db: float = number(most=200)

    def rules(self) -> Iterator[Rule]:
        if self.min_chars > self.max_chars:
            yield "min_chars", f"is {self.min_chars}, more than max_chars={self.max_chars}", "set data.min_chars to at most data.max_chars"
        if not self.alphabet:
            yield "alphabet", "is empty", "give at least one character, for example data.alphabet=abc"
        if twice := [char for number, char in enumerate(self.alphabet) if char in self.alphabet[:number]]:
            yield "alphabet", f"has {twice[0]!r} twice", "give each character once, for example data.alphabet=abc"


@dataclass
class Split(Node):
    """How one list is split: percentages of it, or the speakers that are set apart."""

    by: str = choice("speaker", "parent", "text", "utterance")
    val: Any = MISSING
    test: Any = MISSING
    seed: int = number(ge=0, most=2**63)

    def rules(self) -> Iterator[Rule]:
        percentages = 0.0
        if isinstance(self.val, list) and isinstance(self.test, list) and (both := {*map(str, self.val)} & {*map(str, self.test)}):
            yield "test", f"has speakers that val has too: {', '.join(sorted(both)[:5])}", "give each to one of them"
        for part, value in (("val", self.val), ("test", self.test)):
            if isinstance(value, (bool, str)) or value is None:
                yield part, f"must be a percentage or a list of speakers, received {value!r}", f"for example data.split.{part}=10"
            elif isinstance(value, (int, float)):
                percentages += value
                if not 0 <= value < 100:
                    yield part, f"must be a percentage from 0 to 100, received {value}", f"for example data.split.{part}=10"
        if percentages >= 100:
            yield "test", f"val and test together take {percentages:g} % and leave nothing to train on", "make them smaller"


@dataclass
class Manifest(Loading):
    root: str = MISSING
    train: Any = MISSING
    val: Any = MISSING
    test: Any = MISSING
    split: Split = field(default_factory=Split)
    sample_rate: int | None = number(ge=1000, most=HIGHEST_RATE)
    duration_tolerance: float = number(ge=0)
    trust_durations: bool = MISSING

    def rules(self) -> Iterator[Rule]:
        root = user_path(self.root)
        if not is_folder(root):
            yield from _root_problem(self.root, "the manifests are in", lists=True)
            return
        if self.trust_durations and self.sample_rate is None:
            yield "trust_durations", "is true, so no file is opened to read its sample rate", "set data.sample_rate"
        for part, value in (("train", self.train), ("val", self.val), ("test", self.test)):
            names = [value] if isinstance(value, str) else (value or [])
            for name in names:
                if not is_file(root / str(name)):
                    yield (
                        part,
                        f"no such manifest: {(root / str(name)).absolute()}",
                        f"set data.{part} to a JSONL file, relative to data.root",
                    )


@dataclass
class Folder(Loading):
    root: str = MISSING
    labels: str = choice("auto", "folder", "file")
    train: str = MISSING
    val: str | None = MISSING
    test: str | None = MISSING
    split: Split = field(default_factory=Split)
    speaker: str | None = MISSING
    sample_rate: int | None = number(ge=1000, most=HIGHEST_RATE)

    def rules(self) -> Iterator[Rule]:
        yield from _root_problem(self.root, "the audio is in")
        for part, name in (("train", self.train), ("val", self.val), ("test", self.test)):
            folder = user_path(self.root) / (name or "")
            if is_folder(user_path(self.root)) and not is_folder(folder):
                yield part, f"no such folder: {folder.absolute()}", f"set data.{part} to a folder inside data.root, or to null"
        if self.speaker not in (None, "folder"):
            try:
                named = re.compile(self.speaker).groupindex
            except (re.error, OverflowError, RecursionError) as error:
                yield "speaker", f"is no regular expression ({error}), received {self.speaker!r}", "or set data.speaker=folder"
            else:
                if "speaker" not in named:
                    yield "speaker", f"has no group named speaker, received {self.speaker!r}", "for example '(?P<speaker>[^_/]+)_[^/]*$'"


@dataclass
class SpeechCommands(Loading):
    root: str = MISSING
    download: bool = MISSING
    mirror: str | None = MISSING
    words: list[str] | None = MISSING
    silence: float = number(ge=0, le=1)
    seed: int = number(ge=0, most=2**63)

    def rules(self) -> Iterator[Rule]:
        if not self.download:
            for key, message, fix in _root_problem(self.root, "validation_list.txt is in"):
                yield key, message, f"{fix}, or data.download=true to fetch it there (2.3 GB)"


@dataclass
class InFolder(Loading):
    """A corpus that lies in one folder."""

    root: str = MISSING

    def rules(self) -> Iterator[Rule]:
        if not getattr(self, "download", False):
            fetched = ", or data.download=true to fetch it there" if hasattr(self, "download") else ""
            for key, message, fix in _root_problem(self.root, "the corpus is in"):
                yield key, message, f"{fix}{fetched}"


@dataclass
class Downloaded(InFolder):
    download: bool = MISSING
    mirror: str | None = MISSING


@dataclass
class LibriSpeech(Downloaded):
    train: list[str] = MISSING
    val: list[str] = MISSING
    test: list[str] = MISSING

    def rules(self) -> Iterator[Rule]:
        if not self.train:
            yield "train", "names no part", "for example data.train=[train-clean-100]"


@dataclass
class YesNo(Downloaded):
    split: Split = field(default_factory=Split)


@dataclass
class LJSpeech(Downloaded):
    split: Split = field(default_factory=Split)
    numbers_in_words: bool = MISSING


@dataclass
class An4(Downloaded):
    split: Split = field(default_factory=Split)


@dataclass
class CommonVoice(InFolder):
    language: str = MISSING
    train: list[str] = MISSING
    val: list[str] = MISSING
    test: list[str] = MISSING


@dataclass
class Timit(InFolder):
    units: str = choice("phones", "words")
    phones: int = MISSING

    def rules(self) -> Iterator[Rule]:
        if self.phones not in (61, 48, 39):
            yield "phones", f"must be 61, 48 or 39, received {self.phones}", "61 as transcribed, 48 for training, 39 for scores"


@dataclass
class InParts(InFolder):
    """A corpus in one folder, whose parts the config names."""

    train: str = MISSING
    val: str | None = MISSING
    test: str | None = MISSING
    split: Split = field(default_factory=Split)


@dataclass
class Kaldi(InParts):
    def rules(self) -> Iterator[Rule]:
        for part, name in (("train", self.train), ("val", self.val), ("test", self.test)):
            folder = user_path(self.root) / (name or "")
            if name is not None and not is_file(folder / "wav.scp"):
                yield part, f"no wav.scp in {folder.absolute()}", f"set data.{part} to a data folder inside data.root"


@dataclass
class LhotseCuts(InParts):
    def rules(self) -> Iterator[Rule]:
        for part, name in (("train", self.train), ("val", self.val), ("test", self.test)):
            path = user_path(self.root) / (name or "")
            if name is not None and not (is_file(path) or is_folder(path)):
                yield part, f"no such file or folder: {path.absolute()}", f"set data.{part} to a manifest of cuts or a Shar folder"


_ADDRESSES = ("http", "https", "s3")


def _has_host(address: str) -> bool:
    """Return whether an address names a host, and a port that is one if it names any."""
    try:
        parts = urlsplit(address)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


@dataclass
class Shar(Loading):
    root: str = MISSING
    split: Split = field(default_factory=Split)
    connections: int = number(ge=1, most=256)
    retries: int = number(ge=0, most=100)
    timeout: float = number(gt=0, most=86_400)

    def rules(self) -> Iterator[Rule]:
        scheme, separator, _ = self.root.partition("://")
        if not separator:
            yield from _root_problem(self.root, "index.jsonl.gz is in")
        elif scheme.lower() not in _ADDRESSES or not _has_host(self.root):
            fix = "give a folder, http(s)://HOST/PATH or s3://BUCKET/PATH"
            yield "root", f"is no address that can be read, received {masked(self.root)}", fix
        elif scheme.lower() == "s3":
            yield from needed("root", ("boto3",))


@dataclass
class HuggingFace(InParts):
    audio: str = MISSING
    text: str = MISSING
    speaker: str | None = MISSING
    id: str | None = MISSING

    def rules(self) -> Iterator[Rule]:
        yield from needed("", ("datasets",))


@dataclass
class Mix(Loading):
    corpora: dict[str, Any] = MISSING
    weights: dict[str, float] = MISSING

    def rules(self) -> Iterator[Rule]:
        if not self.corpora:
            yield "corpora", "is empty", "for example +data@data.corpora.a=librispeech"
        for name, weight in self.weights.items():
            if name not in self.corpora:
                yield f"weights.{name}", "there is no such corpus", f"there is: {', '.join(map(str, self.corpora)) or 'none'}"
            elif weight <= 0:
                yield f"weights.{name}", f"must be more than 0, received {weight}", "leave the corpus out to do without it"


@dataclass
class KeywordWindows(Mix):
    background: list[str] = MISSING
    window: float = number(gt=0, most=60)
    context: float = number(ge=0, le=1)
    partial: float = number(ge=0, le=1)
    silence: float = number(ge=0, most=100)
    snr_db: list[float] = number(most=200)
    seed: int = number(ge=0, most=2**63)

    def rules(self) -> Iterator[Rule]:
        yield from super().rules()
        names = ", ".join(map(str, self.corpora)) or "none"
        for name in self.background:
            if name not in self.corpora:
                yield "background", f"there is no corpus {name} in data.corpora", f"there is: {names}"
        if self.corpora and not set(self.corpora) - set(self.background):
            yield "background", "names all corpora, so that there are no keywords", "leave out those of keywords"
        if len(self.snr_db) != 2 or self.snr_db[0] > self.snr_db[1]:
            yield "snr_db", f"must be [lowest, highest], received {self.snr_db}", "for example data.snr_db=[5,40]"


def _root_problem(root: str, holds: str, *, lists: bool = False) -> Iterator[Rule]:
    folder = user_path(root)
    if is_file(folder):
        its_folder = Path(root).parent
        fix = f"data.root={its_folder}" + (f" data.train={folder.name}" if lists else "")
        yield "root", f"is a file, and no folder: {folder.absolute()}", f"give the folder that it is in: {fix}"
    elif not is_folder(folder):
        yield "root", f"no such folder: {folder.absolute()}", f"set data.root to the folder that {holds}"


@dataclass
class SignalData(Loading):
    """A corpus whose samples are the features, and whose targets are signals."""

    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"features": ("StoredFeatures",), "task": ("RegressionTask",)}


_MOST_SAMPLES = 10_000_000  # of a signal that is made


@dataclass
class Signals(SignalData):
    frequencies: list[float] = number(gt=0)
    amplitudes: list[float] = number(ge=0)
    snr_db: list[float] = number(most=200)
    duration: float = number(gt=0, most=100_000)
    sample_rate: int = number(ge=1, most=HIGHEST_RATE)
    seed: int = number(ge=0, most=2**63)
    train_size: int = number(ge=1, most=10_000_000)
    val_size: int = number(ge=1, most=10_000_000)
    test_size: int = number(ge=1, most=10_000_000)
    save_to: str | None = MISSING

    def rules(self) -> Iterator[Rule]:
        if self.save_to is not None:
            yield from needed("save_to", ("h5py",))
        if self.duration * self.sample_rate > _MOST_SAMPLES:
            message = f"is {self.duration:g} s, more than {_MOST_SAMPLES} samples at {self.sample_rate} Hz"
            yield "duration", message, "lower data.duration or data.sample_rate"
        if not self.frequencies:
            yield "frequencies", "is empty", "for example data.frequencies=[1,3,5,7]"
        for frequency in self.frequencies:
            if frequency >= self.sample_rate / 2:
                message = f"holds {frequency:g} Hz, not below half of sample_rate ({self.sample_rate / 2:g} Hz)"
                yield "frequencies", message, "lower it, or raise data.sample_rate"
        for key, values, example in (("amplitudes", self.amplitudes, "[0.5,1.5]"), ("snr_db", self.snr_db, "[0,10]")):
            if len(values) != 2 or values[0] > values[1]:
                yield key, f"must be [lowest, highest], received {values}", f"for example data.{key}={example}"


@dataclass
class Hdf5Signals(SignalData):
    root: str = MISSING
    train: str = MISSING
    val: str | None = MISSING
    test: str | None = MISSING
    split: Split = field(default_factory=Split)
    sample_rate: int = number(ge=1, most=HIGHEST_RATE)

    def rules(self) -> Iterator[Rule]:
        yield from needed("", ("h5py",))
        root = user_path(self.root)
        yield from _root_problem(self.root, "the HDF5 files are in")
        for part, name in (("train", self.train), ("val", self.val), ("test", self.test)):
            if is_folder(root) and name is not None and not is_file(root / name):
                yield part, f"no such file: {(root / name).absolute()}", f"set data.{part} to an HDF5 file, relative to data.root"
        if self.split.by != "utterance":
            yield "split.by", "must be utterance: signals have no speakers", "set data.split.by=utterance"


@dataclass
class Featurised(Loading):
    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"features": ("StoredFeatures",)}
    split_dir: str = MISSING
    spectrogram_manifest_dir: str = MISSING
    token_manifest_dir: str = MISSING
    vocab_dir: str = MISSING
    spectrogram_dir: str = MISSING
    token_dir: str = MISSING
    frame_rate: int = number(ge=1, most=HIGHEST_RATE)
    pad_value: float | None = number(most=math.inf)

    def rules(self) -> Iterator[Rule]:
        for key in ("split_dir", "spectrogram_manifest_dir", "token_manifest_dir", "vocab_dir", "spectrogram_dir", "token_dir"):
            folder = user_path(getattr(self, key))
            if not is_folder(folder):
                yield (
                    key,
                    f"no such folder: {folder.absolute()}",
                    f"set data.{key} to a folder; see speechtrain/data/corpora/spectrograms.py",
                )
