"""What is known of a training before its first step, from config, data and model: what a diagnosis goes by besides the epochs' metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf

from speechtrain.config.build import build
from speechtrain.config.experiment import Component, ExperimentConfig, class_name, kind_of_test
from speechtrain.data.batches import Reference
from speechtrain.data.corpus import Cut
from speechtrain.data.cut_table import seconds
from speechtrain.data.splits import limit_cuts
from speechtrain.data.text.tokenizers import in_other_case
from speechtrain.errors import DataError

if TYPE_CHECKING:
    from speechtrain.data.loader import Loader
    from speechtrain.data.task_data import TaskData
    from speechtrain.training.steps import Experiment

_MOST_TEXTS = 2000  # utterances of a split whose texts are looked at
_MOST_RECORDINGS = 24  # recordings that are listened to
_LONGEST = 60.0  # s of a recording that is listened to
_SCHEDULE_POINTS = 200  # steps of a run at which its schedule is looked at

_SILENT_PEAK = 1e-4  # of full scale; 16 bits resolve 3e-5
_FLAT_DB = 2.0  # difference between loud and quiet frames below which nothing is spoken
_CLIPPED_SHARE = 0.02  # of the samples
_ADAPTIVE = ("Adam", "AdamW", "RMSprop", "NAdam", "RAdam", "Adamax")
"""Optimizers whose step does not grow with the gradient: no weight moves by much more than the learning rate."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Holds what is known before the first step; shares are from 0 to 1, and None where something does not apply.

    Attributes:
        test_run: the kind of test run; None: a real run.
        guess_loss: see `guess_loss`; nats a label.
        steps: optimizer steps of the whole run.
        epoch_steps: those of an epoch.
        lr: the learning rate where the schedule's factor is 1; None: it is found before training, or the optimizer has none.
        lr_sum: sum of the learning rates of all steps.
        lr_top: the step at which the rate is highest, as a share of the run.
        optimizer: name of the optimizer's class.
        pretrained: whether the run begins with trained weights, or is resumed.
        parameters: how many are trained.
        head_trained: whether the task's head is.
        train, val: number of utterances.
        val_labels: number of tokens in the validation texts that were looked at.
        infeasible: share of the training utterances that have fewer frames than their labels need.
        unseen: share of the validation labels that no training text holds, those the vocabulary lacks among them.
        other_case: share of the validation tokens that the vocabulary has in the other case only.
        recordings: number of training recordings that were listened to.
        silent: share of them in which nothing is to be heard, or nothing but an even noise.
        clipped: share of them that are cut off at their highest level.
        masked: share of an utterance that the masks of `augment` cover in the mean.
        label_smoothing: that of the task.
        dropout: that of the model.
        shrinking: share of each weight that weight decay takes off it in a step.
        adds_to_loss: whether the loss that a batch is trained on is more than the task's own, which that of an epoch is.
    """

    test_run: str | None
    guess_loss: float | None
    steps: int
    epoch_steps: int
    lr: float | None
    lr_sum: float | None
    lr_top: float
    optimizer: str
    pretrained: bool
    parameters: int
    head_trained: bool
    train: int
    val: int
    val_labels: int
    infeasible: float
    unseen: float
    other_case: float
    recordings: int
    silent: float
    clipped: float
    masked: float
    label_smoothing: float
    dropout: float
    shrinking: float
    adds_to_loss: bool

    @property
    def adaptive(self) -> bool:
        """Return whether the optimizer moves weights by about the learning rate, however large their gradients are."""
        return self.optimizer in _ADAPTIVE

    def as_dict(self) -> dict[str, Any]:
        """Return the facts by name, as JSON can hold them."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Facts:
        """Make the facts that `as_dict` returned.

        Raises:
            OmegaConfBaseException: one is missing, or of another type.
        """
        known = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        facts = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), known))
        assert isinstance(facts, cls)
        return facts


def gather(run: Experiment, train: Loader) -> Facts:
    """Gather the facts of a run whose parts are built; it reads a few recordings and looks at some thousand texts at most.

    Args:
        run: its utterances that cannot be learnt are left out already.
        train: the training batches.
    """
    cfg, data = run.cfg, run.data
    texts = {split: limit_cuts(data.corpus.splits[split], _MOST_TEXTS) for split in ("train", "val")}
    labels = {split: _labels(data, cuts) for split, cuts in texts.items()}
    epoch_steps = -(-len(train) // cfg.trainer.accumulate_grad_batches)
    steps = min(epoch_steps * cfg.trainer.epochs, cfg.trainer.max_steps or math.inf)
    factors = _factors(cfg, int(steps), epoch_steps)
    rate = None if cfg.trainer.find_lr else _number(cfg.optimizer, "lr") or None
    silent, clipped, recordings = _sound(data)
    trained = len(data.corpus.splits["train"])
    removed = data.infeasible if run.task.on_infeasible == "skip" else 0
    return Facts(
        test_run=kind_of_test(cfg),
        guess_loss=_guess_of(run, texts["train"], labels["train"]),
        steps=int(steps),
        epoch_steps=epoch_steps,
        lr=rate,
        lr_sum=None if rate is None else rate * float(np.mean(factors)) * int(steps),
        lr_top=float(np.argmax(factors)) / max(1, len(factors) - 1),
        optimizer=class_name(cfg.optimizer),
        pretrained=cfg.init_from is not None or cfg.resume is not None or bool(cfg.model.get("weights") or cfg.model.get("path")),
        parameters=run.info.parameters,
        head_trained=run.info.head_trained,
        train=trained,
        val=len(data.corpus.splits["val"]),
        infeasible=data.infeasible / max(1, trained + removed),
        **_overlap(data, texts["val"], labels),
        recordings=recordings,
        silent=silent,
        clipped=clipped,
        masked=_masked(run),
        label_smoothing=_number(cfg.task, "label_smoothing"),
        dropout=_number(cfg.model, "dropout"),
        adds_to_loss=any(_number(cfg.task, key) for key in ("label_smoothing", "intermediate", "consistency")),
        shrinking=(rate or 0.0) * _number(cfg.optimizer, "weight_decay") if class_name(cfg.optimizer) == "AdamW" else 0.0,
    )


def _number(component: Component, key: str) -> float:
    """Return the value of a key of a component; 0 where it has none, or one that is no number, as classes of the user's own may."""
    value = component.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0


def guess_loss(counts: Sequence[int], frames: Sequence[int], labels: Sequence[int]) -> float:
    """Return the loss a label, in nats, of the best guess of a CTC model that hears nothing, and knows token frequencies and lengths.

    In each frame it gives the blank the probability 1 - r and token k the probability r q(k), whatever is said: q(k) is the token's share
    of all labels, r = sum(L) / sum(T) are the labels a frame. Nearly all alignments of a text with L labels to T frames hold each label for
    one frame, so that the text has the probability C(T, L) r^L (1 - r)^(T - L) prod q, and the loss a label is

        -sum(q log q)  -  sum over utterances of log(C(T, L) r^L (1 - r)^(T - L)) / sum(L)

    A model of CTC falls to it within its first steps, and recognises nothing until it falls further: r q(k) is below 1 - r for every token.

    Args:
        counts: how often each token occurs in the texts.
        frames: T, encoder frames of each utterance.
        labels: L, labels of each utterance.
    """
    shares = np.array([count for count in counts if count], dtype=np.float64)
    shares /= shares.sum()
    total = max(1, sum(labels))
    rate = min(1 - 1e-6, total / max(1, sum(frames)))
    places = sum(_log_binomial(long, short, rate) for long, short in zip(frames, labels, strict=True) if long >= short)
    return float(-(shares * np.log(shares)).sum()) - places / total


def _log_binomial(trials: int, hits: int, rate: float) -> float:
    ways = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
    return ways + hits * math.log(rate) + (trials - hits) * math.log1p(-rate)


def _labels(data: TaskData, cuts: Sequence[Cut]) -> list[npt.NDArray[np.int64]]:
    """Return the labels of each utterance; empty where the task's targets are no labels."""
    if data.corpus.target is not None:
        return []
    targets = [np.asarray(data.target(Reference(cut.text))) for cut in cuts]
    return [each.astype(np.int64) for each in targets if each.ndim == 1 and np.issubdtype(each.dtype, np.integer)]


def _guess_of(run: Experiment, cuts: Sequence[Cut], labels: Sequence[npt.NDArray[np.int64]]) -> float | None:
    """Return the loss of the best guess for the training texts; None where the task has no labels or weighs them."""
    if not labels or len(labels) != len(cuts) or not run.task.head.log_softmax or not any(map(len, labels)):
        return None
    counts = np.bincount(np.concatenate(labels))
    if run.task.timed:
        frames = run.backend.output_lengths(run.model, np.array([run.data.frames(cut) for cut in cuts], dtype=np.int64))
        return guess_loss(counts.tolist(), frames.tolist(), [len(each) for each in labels])
    if run.cfg.task.get("class_weights") or run.cfg.task.get("label_smoothing"):
        return None
    return guess_loss(counts.tolist(), [1] * len(labels), [1] * len(labels))


def _factors(cfg: ExperimentConfig, steps: int, epoch_steps: int) -> npt.NDArray[np.float64]:
    """Return the factors of the learning rate at steps that are evenly spread over the run."""
    schedule = build("scheduler", cfg.scheduler)
    schedule.begin(steps, epoch_steps)
    return np.array([schedule.factor(int(step)) for step in np.linspace(0, max(0, steps - 1), num=_SCHEDULE_POINTS)])


def _overlap(data: TaskData, val: Sequence[Cut], labels: Mapping[str, Sequence[npt.NDArray[np.int64]]]) -> dict[str, Any]:
    """Return the number of tokens in the validation texts, and the shares that training texts lack and that are in the other case."""
    if not labels["train"] or not labels["val"]:
        return {"val_labels": 0, "unseen": 0.0, "other_case": 0.0}
    whole = len(labels["train"]) == len(data.corpus.splits["train"])  # a part does not hold all that is trained on
    known = set(np.concatenate(labels["train"]).tolist()) if whole else set(range(len(data.tokenizer.vocabulary)))
    missing = Counter(token for cut in val for token in data.tokenizer.unknown(cut.text))
    tokens = sum(map(len, labels["val"])) + missing.total()
    unseen = missing.total() + sum(int(label not in known) for each in labels["val"] for label in each.tolist())
    vocabulary = set(data.tokenizer.vocabulary)
    other = sum(count for token, count in missing.items() if in_other_case(token, vocabulary))
    return {"val_labels": tokens, "unseen": unseen / max(1, tokens), "other_case": other / max(1, tokens)}


def _sound(data: TaskData) -> tuple[float, float, int]:
    """Return which share of some training recordings is silent, which is clipped, and how many were listened to."""
    if not data.features.from_audio or data.corpus.target is not None:
        return 0.0, 0.0, 0
    silent, clipped, count = 0, 0, 0
    for cut in limit_cuts(data.corpus.splits["train"], _MOST_RECORDINGS):
        if cut.duration > _LONGEST:
            continue
        try:
            samples = data.corpus.read(cut, cut.sample_rate)
        except DataError:
            continue
        count += 1
        silent += is_silent(samples, cut.sample_rate)
        clipped += is_clipped(samples)
    return silent / max(1, count), clipped / max(1, count), count


def is_silent(samples: npt.NDArray[np.float32], rate: int) -> bool:
    """Return whether nothing is to be heard in samples (N,), or nothing but a noise whose level does not change as that of speech does."""
    if np.abs(samples).max(initial=0.0) < _SILENT_PEAK:
        return True
    size = max(1, rate // 50)
    frames = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float64)
    if len(frames) < 10:  # too short to have pauses
        return False
    levels = 10 * np.log10(frames.var(1) + 1e-12)
    return bool(np.subtract(*np.quantile(levels, [0.95, 0.05])) < _FLAT_DB)


def is_clipped(samples: npt.NDArray[np.float32]) -> bool:
    """Return whether many samples (N,) lie at the highest level beside equal ones, as in recordings that were cut off there."""
    level = np.abs(samples)
    peak = level.max(initial=0.0)
    flat = (level[1:] >= 0.999 * peak) & (samples[1:] == samples[:-1])
    return bool(peak > _SILENT_PEAK and flat.mean() > _CLIPPED_SHARE)


def _masked(run: Experiment) -> float:
    """Return the share of an utterance of mean length that the masks of `augment` cover in the mean."""
    augment, cuts = run.cfg.augment, run.data.corpus.splits["train"]
    frames = max(1.0, seconds(cuts) / len(cuts) * run.data.features.frame_rate)
    widest = min(_number(augment, "time_mask_width"), _number(augment, "time_mask_ratio") * frames)
    mels = 1 - min(1.0, _number(augment, "freq_mask_width") / max(1, run.data.features.size)) / 2
    return float(1 - mels ** _number(augment, "freq_masks") * (1 - widest / frames / 2) ** _number(augment, "time_masks"))
