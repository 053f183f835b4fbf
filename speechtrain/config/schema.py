"""What every config group may hold: names, types, ranges and units, registered with Hydra's ConfigStore.

The values live in `conf/`, next to comments for people; the dataclasses here have no defaults, so that each value is written down once.
A group option takes its schema with `- /schema/<group>/<name>@_here_` in its defaults list, after which Hydra refuses an unknown key
or a wrong type while composing. Ranges, and rules between the keys of one node (`rules`), are checked by `config.checks`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

Rule = tuple[str, str, str]
"""(key relative to the node, what is wrong, what to do)."""


def number(*, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None) -> Any:
    """A field whose value, or each of whose values if it is a list, lies within the bounds; None is left alone."""
    return field(default=MISSING, metadata={"ge": ge, "gt": gt, "le": le, "lt": lt})


def choice(*allowed: str) -> Any:
    """A field that takes one of the given words."""
    return field(default=MISSING, metadata={"choices": allowed})


@dataclass
class Node:
    """Base of every schema."""

    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """By other groups: schemas of which one must be chosen there; a group without a schema is left alone."""

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        """Yield what is wrong between the keys of this node; types and ranges are known to be right by then."""
        yield from ()


@dataclass
class Target(Node):
    """A node that names the class or function it is the arguments of."""

    _target_: str = MISSING


# --- data -----------------------------------------------------------------------------------------------------------------------------


@dataclass
class OnShared(Node):
    speaker: str = choice("allow", "warn", "error")
    parent: str = choice("allow", "warn", "error")
    audio: str = choice("allow", "warn", "error")


@dataclass
class Loading(Target):
    """How any corpus is batched. These keys are read by the data room and not passed to `_target_`."""

    batch_seconds: float = number(gt=0)
    batch_size: int | None = number(ge=1)
    num_buckets: int = number(ge=1)
    num_workers: int = number(ge=0)
    cache_gb: float = number(ge=0)
    check_hours: float = number(ge=0)
    feature_cache: str | None = MISSING
    feature_cache_gb: float = number(gt=0)
    min_duration: float = number(ge=0)
    max_duration: float | None = number(gt=0)
    limit_utterances: int | None = number(ge=1)
    folds: int | None = number(ge=2)
    fold: int | None = number(ge=0)
    fold_by: str = choice("speaker", "parent", "utterance")
    normalize: list[str] = MISSING
    on_shared: OnShared = field(default_factory=OnShared)
    on_bad: str = choice("skip", "error")
    on_empty: str = choice("error", "warn")

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if node.fold is not None and (node.folds is None or node.fold >= node.folds):
            fix = "leave data.fold out to train all folds" if node.folds else "set data.folds as well"
            yield "fold", f"is {node.fold}, and there are {node.folds or 'no'} folds, counted from 0", fix


LOADING_KEYS = frozenset(f.name for f in dataclasses.fields(Loading)) - {"_target_"}


@dataclass
class Generated(Loading):
    """A corpus that is made on the spot."""

    seed: int = number(ge=0)
    train_size: int = number(ge=1)
    val_size: int = number(ge=1)
    test_size: int = number(ge=1)
    sample_rate: int = number(ge=1000)


@dataclass
class Digits(Generated):
    cache_dir: str = MISSING
    min_words: int = number(ge=1)
    max_words: int = number(ge=1)
    processes: int | None = number(ge=1)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if node.min_words > node.max_words:
            yield "min_words", f"is {node.min_words}, more than max_words={node.max_words}", "set data.min_words to at most data.max_words"


@dataclass
class Synthetic(Generated):
    alphabet: str = MISSING
    min_chars: int = number(ge=1)
    max_chars: int = number(ge=1)
    snr_db: float = number()

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if node.min_chars > node.max_chars:
            yield "min_chars", f"is {node.min_chars}, more than max_chars={node.max_chars}", "set data.min_chars to at most data.max_chars"
        if not node.alphabet:
            yield "alphabet", "is empty", "give at least one character, for example data.alphabet=abc"


@dataclass
class Split(Node):
    """Parts of one list: a percentage of it, or the speakers to set apart."""

    by: str = choice("speaker", "parent", "utterance")
    val: Any = MISSING
    test: Any = MISSING
    seed: int = number(ge=0)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        percentages = 0.0
        for part in ("val", "test"):
            value = node[part]
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
    sample_rate: int | None = number(ge=1000)
    duration_tolerance: float = number(ge=0)
    trust_durations: bool = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        root = Path(node.root).expanduser()
        if not root.is_dir():
            yield "root", f"no such folder: {root.absolute()}", "set data.root to the folder that the manifests are in"
            return
        if node.trust_durations and node.sample_rate is None:
            yield "trust_durations", "is true, so no file is opened that could tell its rate", "set data.sample_rate"
        for part in ("train", "val", "test"):
            names = [node[part]] if isinstance(node[part], str) else (node[part] or [])
            for name in names:
                if not (root / str(name)).is_file():
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
    sample_rate: int | None = number(ge=1000)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        yield from _root_problem(node.root, "the audio is in")
        for part in ("train", "val", "test"):
            folder = Path(node.root).expanduser() / (node[part] or "")
            if Path(node.root).expanduser().is_dir() and not folder.is_dir():
                yield part, f"no such folder: {folder.absolute()}", f"set data.{part} to a folder inside data.root, or to null"
        if node.speaker not in (None, "folder"):
            try:
                named = re.compile(node.speaker).groupindex
            except re.error as error:
                yield "speaker", f"is no regular expression ({error}), received {node.speaker!r}", "or set data.speaker=folder"
            else:
                if "speaker" not in named:
                    yield "speaker", f"has no group named speaker, received {node.speaker!r}", "for example '(?P<speaker>[^_/]+)_[^/]*$'"


@dataclass
class SpeechCommands(Loading):
    root: str = MISSING
    download: bool = MISSING
    words: list[str] | None = MISSING
    silence: float = number(ge=0, le=1)
    seed: int = number(ge=0)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if not node.download:
            for key, message, fix in _root_problem(node.root, "validation_list.txt is in"):
                yield key, message, f"{fix}, or data.download=true to fetch it there (2.3 GB)"


@dataclass
class Published(Loading):
    """A corpus that is known by name."""

    root: str = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if not node.get("download"):
            fetched = ", or data.download=true to fetch it there" if "download" in node else ""
            for key, message, fix in _root_problem(node.root, "the corpus is in"):
                yield key, message, f"{fix}{fetched}"


@dataclass
class Downloaded(Published):
    download: bool = MISSING
    mirror: str | None = MISSING


@dataclass
class LibriSpeech(Downloaded):
    train: list[str] = MISSING
    val: list[str] = MISSING
    test: list[str] = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if not node.train:
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
class CommonVoice(Published):
    language: str = MISSING
    train: list[str] = MISSING
    val: list[str] = MISSING
    test: list[str] = MISSING


@dataclass
class Timit(Published):
    units: str = choice("phones", "words")
    phones: int = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if node.phones not in (61, 48, 39):
            yield "phones", f"must be 61, 48 or 39, received {node.phones}", "61 as transcribed, 48 for training, 39 for scores"


@dataclass
class InParts(Published):
    """A corpus whose parts are named by the user."""

    train: str = MISSING
    val: str | None = MISSING
    test: str | None = MISSING
    split: Split = field(default_factory=Split)


@dataclass
class Kaldi(InParts):
    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        for part in ("train", "val", "test"):
            folder = Path(node.root).expanduser() / (node[part] or "")
            if node[part] is not None and not (folder / "wav.scp").is_file():
                yield part, f"no wav.scp in {folder.absolute()}", f"set data.{part} to a data folder inside data.root"


@dataclass
class LhotseCuts(InParts):
    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        for part in ("train", "val", "test"):
            if node[part] is not None and not (path := Path(node.root).expanduser() / node[part]).exists():
                yield part, f"no such file or folder: {path.absolute()}", f"set data.{part} to a manifest of cuts or a Shar folder"


@dataclass
class HuggingFace(InParts):
    audio: str = MISSING
    text: str = MISSING
    speaker: str | None = MISSING
    id: str | None = MISSING


@dataclass
class Mix(Loading):
    corpora: dict[str, Any] = MISSING
    weights: dict[str, float] = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if not node.corpora:
            yield "corpora", "is empty", "for example +data@data.corpora.a=librispeech"
        for name, weight in node.weights.items():
            if name not in node.corpora:
                yield f"weights.{name}", "there is no such corpus", f"there is: {', '.join(map(str, node.corpora)) or 'none'}"
            elif weight <= 0:
                yield f"weights.{name}", f"must be more than 0, received {weight}", "leave the corpus out to do without it"


def _root_problem(root: str, holds: str) -> Iterator[Rule]:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        yield "root", f"no such folder: {folder.absolute()}", f"set data.root to the folder that {holds}"


@dataclass
class SignalData(Loading):
    """A corpus whose samples are the features, and that wants signals."""

    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"features": ("StoredFeatures",), "task": ("RegressionTask",)}


@dataclass
class Signals(SignalData):
    frequencies: list[float] = number(gt=0)
    amplitudes: list[float] = number(ge=0)
    snr_db: list[float] = number()
    duration: float = number(gt=0)
    sample_rate: int = number(ge=1)
    seed: int = number(ge=0)
    train_size: int = number(ge=1)
    val_size: int = number(ge=1)
    test_size: int = number(ge=1)
    save_to: str | None = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if not node.frequencies:
            yield "frequencies", "is empty", "for example data.frequencies=[1,3,5,7]"
        for frequency in node.frequencies:
            if frequency >= node.sample_rate / 2:
                message = f"holds {frequency:g} Hz, not below half of sample_rate ({node.sample_rate / 2:g} Hz)"
                yield "frequencies", message, "lower it, or raise data.sample_rate"
        for key, example in (("amplitudes", "[0.5,1.5]"), ("snr_db", "[0,10]")):
            values = list(node[key])
            if len(values) != 2 or values[0] > values[1]:
                yield key, f"must be [lowest, highest], received {values}", f"for example data.{key}={example}"


@dataclass
class Hdf5Signals(SignalData):
    root: str = MISSING
    train: str = MISSING
    val: str | None = MISSING
    test: str | None = MISSING
    split: Split = field(default_factory=Split)
    sample_rate: int = number(ge=1)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        root = Path(node.root).expanduser()
        yield from _root_problem(node.root, "the HDF5 files are in")
        for part in ("train", "val", "test"):
            if root.is_dir() and node[part] is not None and not (root / node[part]).is_file():
                yield part, f"no such file: {(root / node[part]).absolute()}", f"set data.{part} to an HDF5 file, relative to data.root"
        if node.split.by != "utterance":
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
    frame_rate: int = number(ge=1)
    pad_value: float | None = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        for key in ("split_dir", "spectrogram_manifest_dir", "token_manifest_dir", "vocab_dir", "spectrogram_dir", "token_dir"):
            folder = Path(node[key]).expanduser()
            if not folder.is_dir():
                yield key, f"no such folder: {folder.absolute()}", f"set data.{key} to a folder; see speechtrain/data/featurised.py"


# --- features, tokenizer, augmentation ------------------------------------------------------------------------------------------------


@dataclass
class LogMel(Target):
    sample_rate: int = number(ge=1000)
    n_mels: int = number(ge=1)
    window: float = number(gt=0, le=1)
    hop: float = number(gt=0, le=1)
    f_min: float = number(ge=0)
    f_max: float | None = number(gt=0)
    preemphasis: float = number(ge=0, lt=1)
    normalize: str = choice("utterance", "band", "none")
    top_db: float | None = number(gt=0)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        nyquist = node.sample_rate / 2
        top = nyquist if node.f_max is None else node.f_max
        if top > nyquist:
            yield "f_max", f"is {top:g} Hz, above half of sample_rate ({nyquist:g} Hz)", f"set features.f_max={nyquist:g} or lower"
        if node.f_min >= top:
            yield "f_min", f"is {node.f_min:g} Hz, not below the upper limit of {top:g} Hz", "lower features.f_min"
        if node.hop > node.window:
            yield "hop", f"is {node.hop} s, longer than the window of {node.window} s: samples would be left out", "lower features.hop"


@dataclass
class StoredFeatures(Target):
    sample_rate: int = number(ge=1)
    normalize: str = choice("utterance", "band", "none")


@dataclass
class TokenList(Target):
    vocabulary_file: str = MISSING
    blank: str = choice("first", "last")


@dataclass
class Label(Target):
    classes: list[str] | None = MISSING
    unknown: str | None = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        classes = list(node.classes or [])
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            yield "classes", f"names {', '.join(twice)} twice", "name each class once"
        if node.classes is not None and len({*classes, *([node.unknown] if node.unknown else [])}) < 2:
            yield "classes", f"is {classes}: there is nothing to tell apart", "name at least two classes, or set tokenizer.unknown as well"


@dataclass
class Char(Target):
    lowercase: bool = MISSING


@dataclass
class Bpe(Target):
    vocab_size: int = number(ge=2)


@dataclass
class Words(Target):
    min_count: int = number(ge=1)
    unknown: str | None = MISSING


@dataclass
class Phonemes(Target):
    lexicon: str | None = MISSING
    language: str = MISSING
    stress: bool = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if node.lexicon is not None and not Path(node.lexicon).expanduser().is_file():
            yield "lexicon", f"no such file: {Path(node.lexicon).expanduser().absolute()}", "give a file such as cmudict.dict, or null"


@dataclass
class Augment(Target):
    speed: float = number(ge=0, lt=0.5)
    tempo: float = number(ge=0, lt=0.5)
    warp: float = number(ge=0, lt=0.5)
    noise_prob: float = number(ge=0, le=1)
    noise_snr_db: list[float] = field(default=MISSING)
    eq_db: float = number(ge=0)
    freq_masks: int = number(ge=0)
    freq_mask_width: int = number(ge=0)
    time_masks: int = number(ge=0)
    time_mask_width: int = number(ge=0)
    time_mask_ratio: float = number(ge=0, le=1)
    recombine_prob: float = number(ge=0, le=1)
    delay: float = number(ge=0)
    frame_dropout: float = number(ge=0, lt=1)
    noise_folder: str | None = MISSING
    noise_folder_prob: float = number(ge=0, le=1)
    reverb_folder: str | None = MISSING
    reverb_prob: float = number(ge=0, le=1)
    lowpass_prob: float = number(ge=0, le=1)
    lowpass_hz: list[float] = number(gt=0)
    codec_prob: float = number(ge=0, le=1)
    gain_db: float = number(ge=0)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        for key, unit, example in (("noise_snr_db", "dB", "[5,30]"), ("lowpass_hz", "Hz", "[2000,4000]")):
            values = list(node[key])
            if len(values) != 2 or values[0] > values[1]:
                yield key, f"must be [lowest, highest] in {unit}, received {values}", f"for example augment.{key}={example}"
        for key in ("noise_folder", "reverb_folder"):
            if node[key] is not None and not Path(node[key]).expanduser().is_dir():
                message = f"no such folder: {Path(node[key]).expanduser().absolute()}"
                yield key, message, f"set augment.{key} to a folder of recordings, or null"


# --- models ---------------------------------------------------------------------------------------------------------------------------


@dataclass
class Tdnn(Target):
    stem_channels: list[int] = number(ge=1)
    stem_time_strides: list[int] = number(ge=1)
    channels: int = number(ge=1)
    kernel_size: int = number(ge=1)
    dilations: list[int] = number(ge=1)
    dropout: float = number(ge=0, lt=1)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if len(node.stem_channels) != len(node.stem_time_strides):
            yield (
                "stem_time_strides",
                f"has {len(node.stem_time_strides)} entries, stem_channels has {len(node.stem_channels)}",
                "give one time stride for each stem layer",
            )
        if node.kernel_size % 2 == 0:
            yield "kernel_size", f"must be odd so that frames stay centred, received {node.kernel_size}", "add or take 1"


@dataclass
class Conformer(Target):
    d_model: int = number(ge=1)
    n_layers: int = number(ge=1)
    n_heads: int = number(ge=1)
    ff_multiplier: float = number(gt=0)
    kernel_size: int = number(ge=1)
    subsampling: int = number(ge=2, le=8)
    stem_channels: int = number(ge=1)
    dropout: float = number(ge=0, lt=1)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if node.d_model % node.n_heads:
            fits = [n for n in range(1, node.d_model + 1) if node.d_model % n == 0 and (node.d_model // n) % 2 == 0]
            near = min(fits, key=lambda n: abs(n - node.n_heads), default=1)
            yield (
                "d_model",
                f"is {node.d_model}, not divisible by n_heads={node.n_heads}",
                f"set model.n_heads={near}, or make model.d_model a multiple of {node.n_heads}",
            )
        elif (node.d_model // node.n_heads) % 2:
            yield (
                "n_heads",
                f"leaves {node.d_model // node.n_heads} dimensions a head; rotary positions need an even number",
                f"set model.d_model={2 * node.n_heads * max(1, round(node.d_model / (2 * node.n_heads)))}",
            )
        if node.kernel_size % 2 == 0:
            yield "kernel_size", f"must be odd so that frames stay centred, received {node.kernel_size}", "add or take 1"
        if node.subsampling not in (2, 4, 8):
            yield "subsampling", f"must be 2, 4 or 8, received {node.subsampling}", "for example model.subsampling=4"


@dataclass
class Crdnn(Target):
    conv_channels: list[int] = number(ge=1)
    conv_time_strides: list[int] = number(ge=1)
    rnn: str = choice("lstm", "gru")
    rnn_size: int = number(ge=1)
    rnn_layers: int = number(ge=1)
    bidirectional: bool = MISSING
    dnn_size: int = number(ge=1)
    dropout: float = number(ge=0, lt=1)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if len(node.conv_channels) != len(node.conv_time_strides):
            yield (
                "conv_time_strides",
                f"has {len(node.conv_time_strides)} entries, conv_channels has {len(node.conv_channels)}",
                "give one time stride for each convolution",
            )


@dataclass
class Mlp(Target):
    hidden_sizes: list[int] = number(ge=1)
    stack: int = number(ge=1)
    dropout: float = number(ge=0, lt=1)


@dataclass
class QuartzNet(Target):
    stem_channels: int = number(ge=1)
    stem_kernel: int = number(ge=1)
    subsampling: int = number(ge=1, le=8)
    channels: list[int] = number(ge=1)
    kernel_sizes: list[int] = number(ge=1)
    repeats: int = number(ge=1)
    head_channels: int = number(ge=1)
    head_kernel: int = number(ge=1)
    head_dilation: int = number(ge=1)
    dropout: float = number(ge=0, lt=1)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if len(node.channels) != len(node.kernel_sizes):
            yield "kernel_sizes", f"has {len(node.kernel_sizes)} entries, channels has {len(node.channels)}", "give one for each block"
        for key in ("stem_kernel", "head_kernel", "kernel_sizes"):
            sizes = list(node[key]) if key == "kernel_sizes" else [node[key]]
            if any(size % 2 == 0 for size in sizes):
                yield key, f"must be odd so that frames stay centred, received {node[key]}", "add or take 1"


@dataclass
class Lstm(Target):
    hidden_size: int = number(ge=1)
    layers: int = number(ge=1)
    stack: int = number(ge=1)
    chunk_frames: int = number(ge=1)
    detach_every: int | None = number(ge=1)
    dropout: float = number(ge=0, lt=1)


# --- optimisation ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Optimizer(Target):
    lr: float = number(gt=0)
    weight_decay: float = number(ge=0)


@dataclass
class AdamLike(Optimizer):
    betas: list[float] = number(ge=0, lt=1)
    eps: float = number(gt=0)
    fused: bool = MISSING


@dataclass
class Sgd(Optimizer):
    momentum: float = number(ge=0, lt=1)
    nesterov: bool = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if node.nesterov and node.momentum == 0:
            yield "nesterov", "needs a momentum above 0", "set optimizer.momentum=0.9 or optimizer.nesterov=false"


@dataclass
class RmsProp(Optimizer):
    alpha: float = number(ge=0, lt=1)
    momentum: float = number(ge=0, lt=1)
    eps: float = number(gt=0)


@dataclass
class Schedule(Target):
    warmup_ratio: float = number(ge=0)
    warmup_steps: int | None = number(ge=0)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if node.warmup_ratio > 1:
            yield (
                "warmup_ratio",
                f"is {node.warmup_ratio}: the warm-up would be longer than the run",
                "warmup_ratio is a share of the run, at most 1; for a number of steps use scheduler.warmup_steps",
            )


@dataclass
class WarmupCosine(Schedule):
    min_factor: float = number(ge=0, le=1)


@dataclass
class Step(Schedule):
    step_epochs: int = number(ge=1)
    gamma: float = number(gt=0, le=1)


@dataclass
class Exponential(Schedule):
    gamma: float = number(gt=0, le=1)


@dataclass
class Plateau(Schedule):
    factor: float = number(gt=0, lt=1)
    patience: int = number(ge=0)
    min_delta: float = number(ge=0)
    min_factor: float = number(ge=0, le=1)


# --- backend, task, trainer, decoder, tracking ----------------------------------------------------------------------------------------


@dataclass
class TorchBackend(Target):
    name: str = MISSING
    threads: int | None = number(ge=1)


@dataclass
class KerasBackend(Target):
    name: str = MISSING
    engine: str = choice("tensorflow", "jax", "torch")
    threads: int | None = number(ge=1)
    jit_compile: bool | None = MISSING
    precision: str = MISSING
    deterministic: bool = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        modules = {"keras": "keras", "tensorflow": "keras", "jax": "keras,jax", "torch": "keras"}
        for module in dict.fromkeys(("keras", node.engine)):
            if importlib.util.find_spec(module) is None:
                yield "engine", f"needs {module}, which is not installed", f"pip install 'speechtrain[{modules[module]}]'"
                return


@dataclass
class Task(Target):
    """`metric`: what a run is judged by unless `objective.metric` says otherwise; it is not passed to `_target_`."""

    metric: str = MISSING


@dataclass
class CtcTask(Task):
    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"tokenizer": ("Char", "TokenList", "Bpe", "Words", "Phonemes")}
    on_infeasible: str = choice("skip", "error", "keep")
    consistency: float = number(ge=0)


@dataclass
class ClassificationTask(Task):
    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"tokenizer": ("Label",)}
    pool: str = choice("mean", "max", "last")
    class_weights: Any = MISSING
    label_smoothing: float = number(ge=0, lt=1)

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        weights, example = node.class_weights, "for example task.class_weights=balanced or '{yes: 2, no: 1}'"
        if isinstance(weights, DictConfig):
            bad = {
                name: value
                for name, value in weights.items()
                if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0
            }
            for name, value in bad.items():
                yield "class_weights", f"must be numbers of at least 0, received {value!r} for {name!s}", example
        elif weights not in (None, "balanced"):
            yield "class_weights", f"must be balanced, null or a weight for each class, received {weights!r}", example


@dataclass
class RegressionTask(Task):
    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"data": ("Signals", "Hdf5Signals")}
    criterion: str = choice("mse", "mae", "huber", "smooth_l1")
    delta: float = number(gt=0)
    mixture_channel: int | None = number(ge=0)


@dataclass
class EarlyStopping(Node):
    patience: int | None = number(ge=0)
    min_delta: float = number(ge=0)
    monitor: str | None = MISSING


@dataclass
class Checkpoint(Node):
    save_top_k: int = number(ge=0)
    save_last: bool = MISSING
    every_n_epochs: int | None = number(ge=1)
    every_n_steps: int | None = number(ge=1)
    monitor: str | None = MISSING
    filename: str = MISSING

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        if node.every_n_steps is not None and not node.save_last:
            fix = "set trainer.checkpoint.save_last=true"
            yield "every_n_steps", f"is {node.every_n_steps}, and the last checkpoint is not kept", fix


@dataclass
class Trainer(Node):
    epochs: int = number(ge=1)
    max_steps: int | None = number(ge=1)
    gradient_clip_val: float | None = number(gt=0)
    gradient_clip_algorithm: str = choice("norm", "value")
    accumulate_grad_batches: int = number(ge=1)
    precision: str = choice("32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true")
    accelerator: str = MISSING
    devices: Any = MISSING
    strategy: str = MISSING
    deterministic: bool = MISSING
    val_every_n_epochs: int = number(ge=1)
    log_every_n_steps: int | None = number(ge=1)
    limit_epochs: int | None = number(ge=1)
    limit_train_batches: int | None = number(ge=1)
    limit_val_batches: int | None = number(ge=1)
    limit_test_batches: int | None = number(ge=1)
    fast_dev_run: bool = MISSING
    test_checkpoint: str = choice("best", "last")
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)


@dataclass
class GreedyDecoder(Target):
    pass


@dataclass
class MlflowTracking(Target):
    tracking_uri: str | None = MISSING
    experiment: str = MISSING
    run_name: str | None = MISSING
    log_checkpoint: bool = MISSING
    log_model: bool = MISSING
    registered_model: str | None = MISSING
    system_metrics: float | None = number(gt=0)
    patience: float = number(ge=0)


@dataclass
class TensorBoardTracking(Target):
    folder: str = MISSING
    table_rows: int = number(ge=0)


@dataclass
class WandbTracking(Target):
    project: str = MISSING
    entity: str | None = MISSING
    mode: str = choice("auto", "online", "offline")
    log_checkpoint: bool = MISSING


# --- the whole ------------------------------------------------------------------------------------------------------------------------


@dataclass
class Objective(Node):
    metric: str = MISSING


@dataclass
class Report(Node):
    enabled: bool | None = MISSING
    worst: int = number(ge=0)
    audio: bool = MISSING
    posteriors: int = number(ge=0)
    bootstrap: int = number(ge=1)


# --- sweeps ---------------------------------------------------------------------------------------------------------------------------


@dataclass
class OptunaSweeper(Target):
    _recursive_: bool = MISSING
    params: Any = MISSING
    when: Any = MISSING
    enqueue: Any = MISSING
    own_values_first: bool = MISSING
    objectives: list[str] | None = MISSING
    direction: Any = MISSING
    constraints: list[str] = MISSING
    report: str | None = MISSING
    seeds_per_trial: int = number(ge=1)
    seeds_startup_trials: int = number(ge=1)
    n_trials: int | None = number(ge=1)
    n_jobs: int = number(ge=1)
    stop_after: float | None = number(gt=0)
    timeout: float | None = number(gt=0)
    retries: int = number(ge=0)
    max_failure_rate: float = number(ge=0, le=1)
    heartbeat: float = number(gt=0)
    study_name: str | None = MISSING
    storage: str | None = MISSING
    keep_pruned_checkpoints: bool = MISSING
    show_output: bool = MISSING
    repeat_best_of: str | None = MISSING
    check: str | None = MISSING
    sampler: Any = MISSING
    pruner: Any = MISSING


@dataclass
class PoolLauncher(Target):
    n_workers: int | None = number(ge=1)
    threads: int | None = number(ge=1)
    gpus: list[int] | None = MISSING
    memory_gb: float | None = number(gt=0)
    max_jobs: int | None = number(ge=1)


@dataclass
class SshLauncher(Target):
    host: str = MISSING
    folder: str = MISSING
    project: str | None = MISSING
    exclude: list[str] = MISSING
    setup: str = MISSING
    python: str = MISSING
    ssh_options: list[str] = MISSING
    poll: float = number(gt=0)
    patience: float = number(ge=0)


# --- the root -------------------------------------------------------------------------------------------------------------------------


@dataclass
class Config(Node):
    """The root. Groups are typed by the schema of the chosen option, so their fields here stay open."""

    data: Any = MISSING
    features: Any = MISSING
    tokenizer: Any = MISSING
    augment: Any = MISSING
    model: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    backend: Any = MISSING
    task: Any = MISSING
    trainer: Any = MISSING
    decoder: Any = MISSING
    tracking: Any = field(default_factory=dict)
    seed: int = number(ge=0, lt=2**32)
    dry_run: bool = MISSING
    test_run: str | None = choice("quick", "dry_run", "fast_dev_run")
    resume: str | None = MISSING
    init_from: str | None = MISSING
    rerun: str | None = MISSING
    trust: bool = MISSING
    objective: Objective = field(default_factory=Objective)
    samples: int = number(ge=0)
    report: Report = field(default_factory=Report)
    output_dir: str = MISSING


@dataclass
class CompareConfig(Node):
    """Of `python -m speechtrain.compare`."""

    runs: list[str] = MISSING
    study: list[str] = MISSING
    tags: dict[str, Any] = MISSING
    experiment: str = MISSING
    tracking_uri: str | None = MISSING
    metrics: list[str] | None = MISSING
    sort: str | None = MISSING
    top: int | None = number(ge=1)
    out: str | None = MISSING
    bootstrap: int = number(ge=1)


SCHEMAS: dict[str, dict[str, type[Node]]] = {
    "data": {
        "digits": Digits,
        "synthetic": Synthetic,
        "manifest": Manifest,
        "featurised": Featurised,
        "folder": Folder,
        "speech_commands": SpeechCommands,
        "signals": Signals,
        "hdf5_signals": Hdf5Signals,
        "librispeech": LibriSpeech,
        "yesno": YesNo,
        "ljspeech": LJSpeech,
        "an4": An4,
        "common_voice": CommonVoice,
        "timit": Timit,
        "kaldi": Kaldi,
        "lhotse": LhotseCuts,
        "huggingface": HuggingFace,
        "mix": Mix,
    },
    "features": {"logmel": LogMel, "stored": StoredFeatures},
    "tokenizer": {"char": Char, "list": TokenList, "label": Label, "bpe": Bpe, "word": Words, "phoneme": Phonemes},
    "augment": {"spectrum": Augment},
    "model": {"tdnn": Tdnn, "conformer": Conformer, "crdnn": Crdnn, "quartznet": QuartzNet, "lstm": Lstm, "mlp": Mlp},
    "optimizer": {"adam": AdamLike, "adamw": AdamLike, "sgd": Sgd, "rmsprop": RmsProp},
    "scheduler": {
        "constant": Schedule,
        "warmup": Schedule,
        "warmup_cosine": WarmupCosine,
        "step": Step,
        "exponential": Exponential,
        "plateau": Plateau,
    },
    "backend": {"torch": TorchBackend, "keras": KerasBackend},
    "task": {"ctc": CtcTask, "classification": ClassificationTask, "regression": RegressionTask},
    "trainer": {"trainer": Trainer},
    "decoder": {"greedy": GreedyDecoder},
    "tracking": {"mlflow": MlflowTracking, "tensorboard": TensorBoardTracking, "wandb": WandbTracking},
    "sweeper": {"optuna": OptunaSweeper},
    "launcher": {"pool": PoolLauncher, "ssh": SshLauncher},
}


def register() -> None:
    """Make the schemas known to Hydra, under `schema/<group>/<name>` and `base`."""
    store = ConfigStore.instance()
    store.store(name="base", node=Config)
    store.store(name="base_compare", node=CompareConfig)
    for group, options in SCHEMAS.items():
        for name, schema in options.items():
            store.store(group=f"schema/{group}", name=name, node=schema)
