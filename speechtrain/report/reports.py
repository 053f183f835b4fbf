"""Reports on a finished run: its history as a picture, and a page on what it got wrong."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import soundfile
from hydra.utils import get_method

from speechtrain.config.schema import Report
from speechtrain.data.batches import Batch
from speechtrain.decode.align import align
from speechtrain.files import write_text
from speechtrain.report import pages
from speechtrain.report.classes import class_results, scores_csv
from speechtrain.report.errors import Utterance, bootstrap, trn
from speechtrain.report.figures import (
    Posteriors,
    confusion_figure,
    curves_figure,
    histogram_figure,
    history_figure,
    save_png,
    signal_figure,
    svg,
)

if TYPE_CHECKING:
    from speechtrain.backends.base import Backend, Model
    from speechtrain.data.corpus import Cut
    from speechtrain.data.task_data import TaskData
    from speechtrain.tasks.base import Sample, Task

ERRORS, CLASSES, SIGNALS, HISTORY_PICTURE = "error_report.html", "class_report.html", "signal_report.html", "history.png"
_AUDIO_LIMIT = 4_000_000
"""Bytes of sound in a page."""


def write_history(folder: Path, epochs: Sequence[Mapping[str, float]], best: tuple[str, int, float] | None) -> Path | None:
    """Draw the metrics of the run's epochs, and return the file, or None if there is no epoch."""
    if not epochs:
        return None
    path = folder / HISTORY_PICTURE
    save_png(history_figure(epochs, best), path)
    return path


@dataclass(frozen=True)
class FinishedRun:
    """Holds what a report needs of a finished run.

    Attributes:
        folder: the run's folder.
        samples: all samples of the split, with their details.
        split: name of the split.
        title: what was trained on what; the heading of the pages.
        note: which run it was, below the heading.
        backend, model, task, data: those of the run.
        options: the group `report` of the config.
    """

    folder: Path
    samples: Sequence[Sample]
    split: str
    title: str
    backend: Backend
    model: Model
    task: Task
    data: TaskData
    options: Report
    note: str = ""


def write_report(run: FinishedRun) -> list[Path]:
    """Write the reports that the run's task asks for, and return the files."""
    name = run.task.report
    if name is None or not run.samples:
        return []
    draw: Callable[[FinishedRun], list[Path]] = REPORTS[name] if name in REPORTS else get_method(name)
    return draw(run)


def write_error_report(run: FinishedRun) -> list[Path]:
    """Write the page on the words that are wrong, and the texts for sclite."""
    folder, samples, split, data, options = run.folder, run.samples, run.split, run.data, run.options
    cuts: dict[str, Cut] = {str(cut.id): cut for cut in data.corpus.splits[split]}
    utterances = [_utterance(sample, cuts[sample.id]) for sample in samples if sample.id in cuts]
    bad, fine, ids = pages.choose_examples(utterances, wrong=options.worst, posteriors=options.posteriors)
    posteriors = _posteriors(ids, run) if ids else {}
    sounds = _Sounds(data) if options.audio and data.features.from_audio else None

    def example(utterance: Utterance) -> pages.Example:
        audio = sounds.of(cuts[utterance.id]) if sounds is not None else None
        return pages.Example(utterance, audio, posteriors=posteriors.get(utterance.id))

    text = pages.error_report(
        utterances,
        title=f"{run.title}: errors",
        note=run.note,
        split=split,
        bad=[example(each) for each in bad],
        fine=[example(each) for each in fine],
        tokens=lambda text: [data.tokenizer.vocabulary[label] for label in data.tokenizer.encode(text)],
        draws=options.bootstrap,
    )
    contents = {
        ERRORS: text,
        "transcripts/ref.trn": trn((each.id, each.reference) for each in utterances),
        "transcripts/hyp.trn": trn((each.id, each.hypothesis) for each in utterances),
    }
    for name, content in contents.items():
        write_text(folder / name, content)
    return [folder / name for name in contents]


def _utterance(sample: Sample, cut: Cut) -> Utterance:
    speaker = cut.speaker
    fields = pages.fields_shown({**({"speaker": speaker} if speaker is not None else {}), **cut.custom})
    return Utterance(sample.id, sample.reference, sample.hypothesis, float(cut.duration), sample.confidence, sample.words, fields)


def _posteriors(ids: set[str], run: FinishedRun) -> dict[str, Posteriors]:
    """Return the posteriors of some utterances, with the forced alignment of their references."""
    data = run.data
    subsampling = run.backend.describe(run.model).subsampling
    tokens = data.tokenizer.vocabulary
    posteriors = {}
    for batch, outputs in run.backend.predict(run.model, data.loader_of(run.split, ids), run.task):
        for row, (utterance, log_probs) in enumerate(_rows(batch, outputs.values, outputs.lengths)):
            spans = align(log_probs, batch.targets[row, : batch.target_lengths[row]].tolist())
            named = [(tokens[span.label], span.start, span.end) for span in spans] if spans is not None else None
            posteriors[utterance] = Posteriors(log_probs, tokens, named, data.features.frame_rate / subsampling)
    return posteriors


def _rows(batch: Batch, log_probs: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> list[tuple[str, npt.NDArray[np.float32]]]:
    return [(utterance, log_probs[row, : lengths[row]]) for row, utterance in enumerate(batch.ids)]


def write_class_report(run: FinishedRun) -> list[Path]:
    """Write the page on the classes, its pictures, and the table of the classes."""
    classes = list(run.data.tokenizer.vocabulary)
    labels = {name: label for label, name in enumerate(classes)}
    wanted = [labels.get(each.reference, -1) for each in run.samples]
    found = [labels[each.hypothesis] for each in run.samples]
    results = class_results(wanted, found, np.stack([each.arrays["probabilities"] for each in run.samples]), classes)
    figures = {
        "confusion_matrix": confusion_figure(results.confusion, classes),
        "roc": curves_figure(results.roc, "ROC", "false positive rate", "true positive rate"),
        "precision_recall": curves_figure(results.precision_recall, "precision and recall", "recall", "precision"),
    }
    mistakes = [int(each.reference != each.hypothesis) for each in run.samples]
    wrong = [each for each, mistake in zip(run.samples, mistakes, strict=True) if mistake]
    worst = sorted(wrong, key=lambda each: (-(each.confidence or 0.0), each.id))[: run.options.worst]
    cuts = {str(cut.id): cut for cut in run.data.corpus.splits[run.split]}
    sounds = _Sounds(run.data) if run.options.audio and run.data.features.from_audio else None
    audio = {each.id: sounds.of(cuts[each.id]) for each in worst if each.id in cuts} if sounds is not None else {}
    text = pages.render(
        "classes.html.j2",
        title=f"{run.title}: classes",
        note=run.note,
        split=run.split,
        count=len(run.samples),
        wrong=len(wrong),
        results=results,
        draws=run.options.bootstrap,
        errors=bootstrap(mistakes, [1] * len(mistakes), count=run.options.bootstrap),
        figures=[svg(figure) for figure in figures.values()],
        worst=[{"sample": each, "audio": pages.data_uri(sound, "audio/mpeg") if (sound := audio.get(each.id)) else None} for each in worst],
    )
    write_text(run.folder / CLASSES, text)
    write_text(run.folder / "classes" / "per_class.csv", scores_csv(results.scores))
    for name, figure in figures.items():
        save_png(figure, run.folder / "classes" / f"{name}.png")
    return [run.folder / CLASSES, run.folder / "classes" / "per_class.csv", *(run.folder / "classes" / f"{name}.png" for name in figures)]


def write_signal_report(run: FinishedRun) -> list[Path]:
    """Write the page on signals, and its pictures as files."""
    names = list(run.samples[0].measures)
    by = next((name for name in ("snr_gain_db", "snr_db") if name in names), names[0])
    ranked = sorted(run.samples, key=lambda each: each.measures[by])
    drawn = [each for each in ranked if each.arrays]
    drawn = drawn[:: max(1, len(drawn) // max(1, run.options.posteriors))][: run.options.posteriors]
    rate = run.data.features.frame_rate
    figures = {f"spread_of_{by}": histogram_figure([each.measures[by] for each in run.samples], by)}
    examples = {f"{each.id}": signal_figure(each.arrays, f"{each.id}   {by} {each.measures[by]:.2f}", rate) for each in drawn}
    text = pages.render(
        "signals.html.j2",
        title=f"{run.title}: signals",
        note=run.note,
        split=run.split,
        samples=run.samples,
        shown=ranked[: 10 * max(1, run.options.worst)],
        measures=names,
        figures=[svg(figure) for figure in figures.values()],
        examples=[svg(figure) for figure in examples.values()],
    )
    write_text(run.folder / SIGNALS, text)
    files = {run.folder / "signals" / f"{name}.png": figure for name, figure in (figures | examples).items()}
    for path, figure in files.items():
        save_png(figure, path)
    return [run.folder / SIGNALS, *files]


REPORTS = {"errors": write_error_report, "classes": write_class_report, "signals": write_signal_report}
"""By the names that tasks use."""


class _Sounds:
    """Encodes utterances as MP3, until the page holds enough of them."""

    def __init__(self, data: TaskData) -> None:
        self._data = data
        self._room = _AUDIO_LIMIT

    def of(self, cut: Cut) -> bytes | None:
        """Return the sound of an utterance, or None when the page has no room for it."""
        rate = self._data.features.sample_rate
        buffer = io.BytesIO()
        try:
            soundfile.write(buffer, self._data.corpus.read(cut, rate), rate, format="MP3")
        except (soundfile.SoundFileError, ValueError):  # a rate that MP3 does not have
            return None
        content = buffer.getvalue()
        if len(content) > self._room:
            return None
        self._room -= len(content)
        return content
