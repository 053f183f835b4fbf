"""Looks into the data of a config: durations, speakers, characters, duplicates, and utterances that cannot be aligned."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechtrain.config.build import build
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.errors import counted, unwritable

if TYPE_CHECKING:
    from speechtrain.backends.base import ModelInfo
    from speechtrain.data.checks import SplitFacts
    from speechtrain.data.task_data import TaskData
    from speechtrain.report.profile import Profile


_MOST = 10


@dataclass(frozen=True)
class Inspection:
    """Holds what the data of a config are like, for the config's model.

    Attributes:
        data: the data as they would be trained on.
        facts: durations, speakers and texts of each split that is not empty.
        shared: see `shared_between_splits`.
        duplicates: groups of ids with the same samples, in all splits.
        infeasible: utterances of each split that the chosen model cannot align.
        model: the config's model.
        profile: what the model costs on this machine, if that was asked for.
    """

    data: TaskData
    facts: Mapping[str, SplitFacts]
    shared: Mapping[str, Mapping[str, Sequence[str]]]
    duplicates: Sequence[Sequence[str]]
    infeasible: Mapping[str, Sequence[str]]
    model: ModelInfo
    profile: Profile | None = None


def inspect(cfg: ExperimentConfig, *, with_profile: bool = False) -> Inspection:
    """Read and check the data of a config, for its model, which is measured as well `with_profile`.

    Raises:
        DataError: the data cannot be used; training would raise the same.
    """
    from speechtrain.data.checks import duplicates, facts_of, shared_between_splits
    from speechtrain.data.feasibility import find_infeasible
    from speechtrain.data.prepare import prepare
    from speechtrain.report.profile import profile
    from speechtrain.tasks.build import task_for

    backend = build("backend", cfg.backend)
    cfg = cfg.with_values({"data.check_hours": math.inf})  # all of it is looked into, whatever the config says
    prepared = prepare(cfg, threads=os.cpu_count() or 1)
    task = task_for(cfg, prepared)
    data = prepared.for_task(task)
    model = backend.build(cfg.model, task, input_size=data.features.size, seed=cfg.seed)
    splits = {name: list(cuts) for name, cuts in data.corpus.splits.items() if len(cuts)}
    infeasible: dict[str, Sequence[str]] = {}
    if task.on_infeasible is not None:
        for name, cuts in splits.items():
            too_short = find_infeasible(data, cuts, lambda lengths: backend.output_lengths(model, lengths), task)
            infeasible[name] = [each.id for each in too_short]
    return Inspection(
        data=data,
        facts={name: facts_of(cuts, data.tokenizer) for name, cuts in splits.items()},
        shared=shared_between_splits(data.corpus, data.cache.checksums),
        duplicates=duplicates([cut for cuts in splits.values() for cut in cuts], data.cache.checksums),
        infeasible=infeasible,
        model=backend.describe(model),
        profile=profile(backend, model, data.features) if with_profile and data.features.from_audio else None,
    )


def remarks(inspection: Inspection) -> list[str]:
    """Return what should be looked at, a sentence each."""
    from speechtrain.data.checks import describe_shared
    from speechtrain.data.text.normalize import visible

    lines = []
    for split, facts in inspection.facts.items():
        if facts.outliers:
            examples = abbreviated([f"{name} ({speed:.1f}/s)" for name, speed, _ in facts.outliers])
            count = counted(len(facts.outliers), "utterance")
            lines.append(f"{split}: {count} with far more or fewer characters a second than the others: {examples}")
        if facts.unknown:
            examples = abbreviated(
                [f"'{visible(token)}' ({count}x)" for token, count in sorted(facts.unknown.items(), key=lambda item: -item[1])]
            )
            lines.append(f"{split}: tokens that the training text lacks: {examples}")
        if ids := inspection.infeasible.get(split):
            ratio = f"at the model's subsampling of {inspection.model.subsampling}"
            lines.append(f"{split}: {counted(len(ids), 'utterance')} too short for their text {ratio}: {abbreviated(ids)}")
    if inspection.duplicates:
        groups = [" = ".join(ids[:3]) for ids in inspection.duplicates]
        lines.append(
            f"{len(groups)} {'recording occurs' if len(groups) == 1 else 'recordings occur'} more than once: {abbreviated(groups)}"
        )
    for kind, names in inspection.shared.items():
        if names:
            lines.append(describe_shared(kind, names))
    if inspection.data.skipped:
        lines.append(f"{counted(inspection.data.skipped, 'utterance')} left out, named above")
    return lines


def abbreviated(items: Sequence[str], most: int = _MOST) -> str:
    """Return the first `most` items with commas, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def write_page(inspection: Inspection, folder: Path, examples: int, title: str) -> Path:
    """Write `data_report.html` with histograms, and some training utterances as wave, features and augmented features.

    Raises:
        UserError: the folder cannot be written.
    """
    from speechtrain.files import write_text
    from speechtrain.report.data import data_report

    path = folder / "data_report.html"
    try:
        write_text(path, data_report(inspection.data, inspection.facts, remarks(inspection), examples=examples, title=title))
    except OSError as error:
        raise unwritable(folder, error, "out") from error
    return path
