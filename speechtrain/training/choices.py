"""What `choose` names: values that follow from the data and from `budget_minutes`, chosen once, before a run begins.

The run's config then has the values, and nothing left to choose: a run that is resumed or repeated has them from there.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import ListConfig, OmegaConf

from speechtrain.backends.base import Backend, Model
from speechtrain.config.build import build
from speechtrain.config.experiment import ExperimentConfig, class_name
from speechtrain.config.packaged import is_packaged
from speechtrain.data.batches import Reference
from speechtrain.data.corpus import SPLITS, CorpusSource, Cut
from speechtrain.data.cut_table import seconds
from speechtrain.data.prepare import prepare, read_ahead
from speechtrain.data.task_data import TaskData
from speechtrain.data.text.base import count_repeats
from speechtrain.errors import ConfigError, Problem
from speechtrain.files import is_file, user_path
from speechtrain.tasks.base import Task
from speechtrain.tasks.build import task_for
from speechtrain.training.limits import with_limits
from speechtrain.training.steps import build_backend

log = logging.getLogger(__name__)

_LISTS = {"val": ("valid", "val", "validation", "dev"), "test": ("test", "eval")}
"""Names that manifests of a split have in the data folder, without their ending."""
_HELD_OUT = 10
"""Per cent of the training list that become a split without a list."""
_FEWEST_SPEAKERS = 10
"""With fewer of them whole speakers are too large a part to be set apart."""
_FEW_TEXTS = 0.3
"""Different texts an utterance, below which they are commands or digits: all of them are to be learnt."""
_HIGHEST_RATE = 16_000
"""Hz; speech holds little above half of it that tells letters apart."""
_SHARE = 0.9
"""Share of the audio that must have a sample rate, or more, for it to be chosen."""
_MELS = {12_000: 32, _HIGHEST_RATE: 40}
"""Mel bands up to a sample rate, Hz: of the same width."""
_STRIDES = ((2, 2), (3,), (2,), (1,))
"""Time strides of a model's first convolutions, those that leave the fewest frames first."""
_FEASIBLE = 0.995
"""Share of the training utterances that must be long enough for their text."""
_CHANNELS = (384, 320, 256, 192, 128, 96)
"""Widths of a model, the best first where there is time enough."""
_EPOCHS_PER_ROOT_HOUR = 45.0
"""Epochs that an hour of speech needs; of more data fewer, by the square root of the hours."""
_MOST_TIMES_NEEDED = 8
"""Times as many epochs as needed, beyond which a run learns little more."""
_BF16_GAIN = 0.85
"""Share of the time in float32 below which bfloat16 is chosen."""
_TIMED_BATCHES = 3
_STEP_OVERHEAD = 1.08
"""An epoch's time over that of its losses and gradients: the optimizer's steps and metrics."""
_OVER_WEIGHTS = 3
"""The size of a checkpoint over that of the weights: an optimizer such as AdamW keeps two numbers of each."""
_VALIDATION_COST = 0.35
"""The time of an utterance in validation over that in training."""


@dataclass(frozen=True)
class Choice:
    """Values by dotted key, and in a few words why they were chosen."""

    values: Mapping[str, Any]
    why: str


def choose(cfg: ExperimentConfig) -> ExperimentConfig:
    """Return a config in which the keys of `choose` have values, and nothing is left to choose; tell in a line each why.

    Raises:
        ConfigError: the budget is too short for an epoch of the smallest model, or there are too few utterances.
        DataError: the data cannot be read.
    """
    if not cfg.choose:
        return cfg
    wanted = frozenset(cfg.choosable)
    listing = _Listing()
    steps: tuple[Callable[[ExperimentConfig], Iterator[Choice]], ...] = (
        lambda each: _choose_lists(each, wanted, listing),
        lambda each: _choose_features(each, wanted, listing),
        lambda each: _choose_model(each, wanted),
    )
    for step in steps:
        for choice in list(step(with_limits(cfg))):
            values = {key: value for key, value in choice.values.items() if key in wanted}
            if not values:
                continue
            log.info("chosen: %s (%s)", ", ".join(_described(cfg, key, value) for key, value in values.items()), choice.why)
            cfg = cfg.with_values(values)
    return cfg.with_values({"choose": []})


def _described(cfg: ExperimentConfig, key: str, value: object) -> str:
    """Return a key with the value that was chosen, and the one that it replaces where that is of a user's own file."""
    before = OmegaConf.select(cfg.composed, key)
    before = list(before) if isinstance(before, ListConfig) else before
    own = before not in (None, value) and not is_packaged(cfg.composed, key)
    return f"{key}={_text(value)}" + (f" in place of {_text(before)}" if own else "")


def _text(value: object) -> str:
    return str(value).replace(" ", "") if isinstance(value, list) else str(value)


# --- from the lists ---------------------------------------------------------------------------------------------------------------------


class _Listing:
    """Lists the utterances of a corpus as they are before splits are taken from train, once for each form of its config."""

    def __init__(self) -> None:
        self._cuts: dict[str, list[Cut]] = {}

    def __call__(self, cfg: ExperimentConfig) -> list[Cut]:
        """Return the utterances of all splits."""
        whole = {"split": {**cfg.corpus["split"], "by": "utterance", "val": 0, "test": 0}} if "split" in cfg.corpus else {}
        corpus = {**cfg.corpus, **whole}
        key = repr((corpus, cfg.data.limit_utterances))
        if key not in self._cuts:
            source: CorpusSource = build("data", corpus)
            splits = source.load(cfg.data.limit_utterances).splits
            self._cuts = {key: [cut for name in SPLITS for cut in splits[name]]}
        return self._cuts[key]


def _choose_lists(cfg: ExperimentConfig, wanted: frozenset[str], listing: _Listing) -> Iterator[Choice]:
    """Choose the manifests of val and test, and what is never divided where there are none."""
    if class_name(cfg.corpus) != "Manifest":
        return
    folder = user_path(str(cfg.corpus["root"]))
    missing = []
    for split, names in _LISTS.items():
        found = [f"{name}.jsonl" for name in names if is_file(folder / f"{name}.jsonl")]
        if f"data.{split}" in wanted and found:
            yield Choice({f"data.{split}": found[0]}, "found in data.root")
        elif cfg.corpus[split] is None:
            missing.append(split)
    if missing:
        cuts = listing(cfg)
        speakers, texts = {cut.speaker for cut in cuts}, {cut.text for cut in cuts}
        known = "not every speaker is known" if None in speakers else f"{len(speakers)} speakers"
        by = "text" if len(texts) >= _FEW_TEXTS * len(cuts) else "utterance"
        by = "speaker" if None not in speakers and len(speakers) >= _FEWEST_SPEAKERS else by
        parts = {"speaker": len(speakers), "text": len(texts), "utterance": len(cuts)}[by]
        share = max(_HELD_OUT, math.ceil(100 / max(1, parts)))  # one of them at least
        if parts <= len(missing):
            message = f"is not enough: {known}, {len(texts)} different texts of {len(cuts)} utterances leave none for {', '.join(missing)}"
            raise ConfigError([Problem("data.train", message, "give more, or valid.jsonl and test.jsonl; inspect says what is left out")])
        shares = {f"data.split.{split}": share for split in missing}
        why = f"no list of {' and '.join(missing)}; {known}, {len(texts)} different texts of {len(cuts)} utterances"
        yield Choice({"data.split.by": by, **shares}, why)


def _choose_features(cfg: ExperimentConfig, wanted: frozenset[str], listing: _Listing) -> Iterator[Choice]:
    """Choose the sample rate that most of the audio has, and as many mel bands as it has room for."""
    if not wanted & {"features.sample_rate", "features.n_mels"}:
        return
    lasting: defaultdict[int, float] = defaultdict(float)
    for cut in listing(cfg):
        lasting[cut.sample_rate] += cut.duration
    if not lasting:
        return  # there is nothing to train on, which the run says
    total = sum(lasting.values())
    rates = sorted(lasting, reverse=True)
    above = np.cumsum([lasting[rate] for rate in rates])
    common = rates[int(np.argmax(above >= _SHARE * total))]
    rate = min(common, _HIGHEST_RATE) if "features.sample_rate" in wanted else int(cfg.features["sample_rate"])
    mels = next((mels for most, mels in _MELS.items() if rate <= most), max(_MELS.values()))
    found = ", ".join(f"{lasting[each] / total:.0%} of the audio has {each} Hz" for each in rates[:3])
    yield Choice({"features.sample_rate": rate, "features.n_mels": mels}, found)


# --- from the utterances, and from the time that steps take -----------------------------------------------------------------------------


def _choose_model(cfg: ExperimentConfig, wanted: frozenset[str]) -> Iterator[Choice]:
    """Choose the model's subsampling, its width, and the epochs that the budget has room for."""
    if not wanted & {"model.time_strides", "trainer.precision", "model.channels", "trainer.epochs"}:
        return
    backend = build_backend(cfg)  # first, as it sets the threads
    read_ahead(cfg, threads=os.cpu_count() or 1)
    with _quietly():  # the run says it again, with the values that are chosen
        corpus = prepare(cfg, threads=os.cpu_count() or 1, reuse=True)
    task = task_for(cfg, corpus)
    data = corpus.for_task(task)
    if "model.time_strides" in wanted:
        choice = _subsampling(data)
        cfg = cfg.with_values(choice.values)
        yield choice
    if task.timed and not any(" " in cut.text.strip() for cut in corpus.corpus.splits["train"]):
        log.info(
            "the texts have no spaces: WER counts each of them as one word; CER is the measure (objective.metric=%s)", cfg.objective.metric
        )
    if "trainer.precision" in wanted:
        choice = _precision(cfg, backend, data, task)
        cfg = cfg.with_values(choice.values)
        yield choice
    if wanted & {"model.channels", "trainer.epochs"}:
        yield _size(cfg, backend, data, task, wanted)


def _precision(cfg: ExperimentConfig, backend: Backend, data: TaskData, task: Task) -> Choice:
    """Choose bfloat16 where the processor's products in it take clearly less time."""
    names = ("32-true", "bf16-mixed")
    whole, half = (_epoch_seconds(cfg.with_values({"trainer.precision": name}), backend, data, task) for name in names)
    why = f"in bfloat16 an epoch takes {half / whole:.0%} of the time"
    return Choice({"trainer.precision": names[1] if half < _BF16_GAIN * whole else names[0]}, why)


def _size(cfg: ExperimentConfig, backend: Backend, data: TaskData, task: Task, wanted: frozenset[str]) -> Choice:
    """Choose the widest model for which the budget has room for enough epochs, and their number.

    Raises:
        ConfigError: there is no room for one epoch.
    """
    assert cfg.budget_minutes is not None
    hours = seconds(data.corpus.splits["train"]) / 3600
    needed = max(1, round(_EPOCHS_PER_ROOT_HOUR / math.sqrt(hours))) if "trainer.epochs" in wanted else cfg.trainer.epochs
    for channels in _CHANNELS if "model.channels" in wanted else (None,):
        sized = cfg if channels is None else cfg.with_values({"model.channels": channels})
        epoch = _epoch_seconds(sized, backend, data, task)
        affordable = int(60 * cfg.budget_minutes / epoch)
        if affordable >= needed:
            break
    if not affordable:
        message = f"is {cfg.budget_minutes:g}, and an epoch of {hours:.1f} h takes {epoch / 60:.2g} minutes"
        raise ConfigError([Problem("budget_minutes", message, f"set budget_minutes={math.ceil(10 * epoch / 60)} or more")])
    epochs = min(affordable, _MOST_TIMES_NEEDED * needed)
    why = f"an epoch takes {epoch:.1f} s of {cfg.budget_minutes:g} minutes, and {hours:.1f} h of speech need {needed} of them or more"
    why += f": budget_minutes={math.ceil(needed * epoch / 60)} has room for them" if affordable < needed else ""
    return Choice({"model.channels": channels, "trainer.epochs": epochs}, why)


def _subsampling(data: TaskData) -> Choice:
    """Choose the longest frames in which nearly every training utterance has room for its text, spoken faster by augmentation."""
    cuts = data.corpus.splits["train"]
    labels = [data.target(Reference(cut.text)) for cut in cuts]
    needed = np.array([len(each) + count_repeats(each) for each in labels])
    faster = math.prod(1 + getattr(data.augment, name, 0.0) for name in ("speed", "tempo"))
    frames = np.array([data.frames(cut) for cut in cuts]) / faster
    for strides in _STRIDES:
        share = float(np.mean(frames >= needed * math.prod(strides)))
        if share >= _FEASIBLE:
            break
    rate = sum(map(len, labels)) / seconds(cuts)
    length = 1000 * math.prod(strides) / data.features.frame_rate
    why = f"frames of {length:g} ms, as {rate:.1f} tokens are said in a second: {share:.1%} of the utterances have enough of them"
    return Choice({"model.time_strides": list(strides)}, why)


def _epoch_seconds(cfg: ExperimentConfig, backend: Backend, data: TaskData, task: Task) -> float:
    """Measure some batches, and return the seconds that an epoch will take with its validation."""
    model = backend.build(cfg.model, task, input_size=data.features.size, seed=cfg.seed)
    loader = data.loader("train", shuffle=True, augment=True, views=task.views, max_batches=_TIMED_BATCHES)
    assert loader is not None
    start = time.process_time()
    batches = list(loader)
    spent = time.process_time() - start
    spent += _STEP_OVERHEAD * sum(backend.step_seconds(model, batch, task, cfg.trainer) for batch in batches)
    audio = sum(batch.seconds for batch in batches) / task.views
    validated = seconds(data.corpus.splits["val"]) / cfg.trainer.val_every_n_epochs
    steps = spent / audio * (seconds(data.corpus.splits["train"]) + _VALIDATION_COST / task.views * validated)
    return steps + checkpoint_seconds(cfg, backend, model)


def checkpoint_seconds(cfg: ExperimentConfig, backend: Backend, model: Model) -> float:
    """Measure how long a model's weights take to be written, and return the seconds that the checkpoints of an epoch will take."""
    settings = cfg.trainer.checkpoint
    files = int(settings.save_last) + int(settings.save_top_k != 0)  # the best one is that of nearly each epoch where a run learns
    if not files:
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        backend.save(model, Path(folder) / f"weights{backend.suffix}", {})
        return files * _OVER_WEIGHTS * (time.process_time() - start)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the division of the data tells from being told twice."""
    package = logging.getLogger("speechtrain")
    level = package.level
    package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.setLevel(level)
