"""Utterances that a model cannot learn, because it has too few encoder frames for their labels; known before training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from speechtrain.data.corpus import Cut
from speechtrain.data.cut_table import ids_of, samples_at, texts_of, without
from speechtrain.data.task_data import TaskData
from speechtrain.errors import DataError

log = logging.getLogger(__name__)

Counts = npt.NDArray[np.int64]


class FindsInfeasible(Protocol):
    """As much of a task as knows which utterances cannot be learnt."""

    on_infeasible: str | None

    def count_labels(self, texts: Iterable[str]) -> tuple[Counts, Counts]:
        """Count the labels of each text (N,), and the equal neighbours among them (N,)."""
        ...

    def infeasible(self, lengths: Counts, target_lengths: Counts, repeats: Counts) -> npt.NDArray[np.bool_]:
        """Return which utterances (B,) cannot be learnt with that many encoder frames, labels, and equal neighbours among these."""
        ...


class Infeasible(NamedTuple):
    """An utterance that is too short for its text.

    Attributes:
        frames: number of encoder frames, T'.
        needed: frames that its labels need at least.
    """

    id: str
    frames: int
    needed: int


def find_infeasible(
    data: TaskData, cuts: Sequence[Cut], output_lengths: Callable[[Counts], Counts], task: FindsInfeasible
) -> list[Infeasible]:
    """Find the utterances with too few encoder frames for their labels.

    Args:
        data: has the task's targets.
        cuts: utterances to look at.
        output_lengths: encoder frames (B,) of feature frames (B,).
        task: says what is too few.
    """
    sizes, repeats = task.count_labels(texts_of(cuts))
    samples, which = np.unique(samples_at(cuts, data.features.sample_rate), return_inverse=True)
    frames = np.array([data.features.num_frames(count) for count in samples.tolist()], dtype=np.int64)
    lengths = output_lengths(frames[which])
    places = np.flatnonzero(task.infeasible(lengths, sizes, repeats)).tolist()
    return [Infeasible(cuts[place].id, int(lengths[place]), int(sizes[place] + repeats[place])) for place in places]


def without_infeasible(data: TaskData, output_lengths: Callable[[Counts], Counts], task: FindsInfeasible) -> TaskData:
    """Count the training utterances that the model cannot learn, and leave them out, refuse or keep them as `task.on_infeasible` says.

    Args:
        data: has the task's targets.
        output_lengths: encoder frames (B,) of feature frames (B,).
        task: says which utterances these are; with `on_infeasible=None` there are none.

    Raises:
        DataError: there are some and `on_infeasible` is `error`, or no other is left.
    """
    if task.on_infeasible is None:
        return data
    cuts = data.corpus.splits["train"]
    bad = find_infeasible(data, cuts, output_lengths, task)
    if not bad:
        return data
    examples = ", ".join(f"{each.id} ({each.frames} frames, needs {each.needed})" for each in bad[:8])
    more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
    message = f"{len(bad)} of {len(cuts)} training utterances are too short for their text at this subsampling: {examples}{more}"
    if task.on_infeasible == "error":
        raise DataError(f"{message}\n    -> a model with less subsampling, or task.on_infeasible=skip")
    if len(bad) == len(cuts):
        raise DataError(f"{message}\n    -> choose a model with less subsampling")
    if task.on_infeasible == "keep":
        log.warning("%s; they count as loss 0", message)
        return replace(data, infeasible=len(bad))
    log.warning("%s; they are left out (task.on_infeasible=skip)", message)
    ids = {each.id for each in bad}
    train = without(cuts, [place for place, name in enumerate(ids_of(cuts)) if name in ids])
    return replace(data, infeasible=len(bad), corpus=replace(data.corpus, splits={**data.corpus.splits, "train": train}))
