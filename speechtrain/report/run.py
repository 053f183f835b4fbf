"""What a finished run leaves for people: its history as a picture, and a page on its errors."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import soundfile

from speechtrain.data.batches import Batch
from speechtrain.decode.align import align
from speechtrain.report import page
from speechtrain.report.errors import Utterance, trn
from speechtrain.report.figures import Posteriors, history_figure, save_png

if TYPE_CHECKING:
    from lhotse import MonoCut

    from speechtrain.backends.base import Backend, Model
    from speechtrain.data.prepare import Data
    from speechtrain.tasks.base import Sample, Task

ERRORS, HISTORY_PICTURE = "error_report.html", "history.png"
_AUDIO_LIMIT = 4_000_000
"""Bytes of sound in a page."""


def write_history(folder: Path, epochs: Sequence[Mapping[str, float]], best: tuple[str, int, float] | None) -> Path | None:
    """The picture of the run's metrics; None if there is no epoch."""
    if not epochs:
        return None
    path = folder / HISTORY_PICTURE
    save_png(history_figure(epochs, best), path)
    return path


def write_error_report(
    folder: Path,
    samples: Sequence[Sample],
    split: str,
    *,
    title: str,
    backend: Backend,
    model: Model,
    task: Task,
    data: Data,
    options: Mapping[str, Any],
) -> list[Path]:
    """The page on what a run got wrong in a split, and its texts for sclite; the files.

    Args:
        folder: of the run.
        samples: of the whole split.
        split: their name.
        title: of the page.
        backend: of the run.
        model: trained.
        task: of the run.
        data: of the run.
        options: `report` of the config.
    """
    cuts: dict[str, MonoCut] = {str(cut.id): cut for cut in data.corpus.splits[split]}
    utterances = [_utterance(sample, cuts[sample.id]) for sample in samples if sample.id in cuts]
    bad, fine, wanted = page.choose_examples(utterances, wrong=options["worst"], posteriors=options["posteriors"])
    posteriors = _posteriors(wanted, split, backend, model, task, data) if wanted else {}
    sounds = _Sounds(data) if options["audio"] and data.features.hears else None

    def example(utterance: Utterance) -> page.Example:
        audio = sounds.of(cuts[utterance.id]) if sounds is not None else None
        return page.Example(utterance, audio, posteriors=posteriors.get(utterance.id))

    text = page.error_report(
        utterances,
        title=title,
        split=split,
        bad=[example(each) for each in bad],
        fine=[example(each) for each in fine],
        tokens=lambda text: [data.tokenizer.vocabulary[label] for label in data.tokenizer.encode(text)],
        draws=options["bootstrap"],
    )
    contents = {
        ERRORS: text,
        "transcripts/ref.trn": trn((each.id, each.reference) for each in utterances),
        "transcripts/hyp.trn": trn((each.id, each.hypothesis) for each in utterances),
    }
    for name, content in contents.items():
        page.write(folder / name, content)
    return [folder / name for name in contents]


def _utterance(sample: Sample, cut: MonoCut) -> Utterance:
    speaker = cut.supervisions[0].speaker
    fields = page.fields_shown({**({"speaker": speaker} if speaker is not None else {}), **(cut.custom or {})})
    return Utterance(sample.id, sample.reference, sample.hypothesis, float(cut.duration), sample.confidence, sample.words, fields)


def _posteriors(ids: set[str], split: str, backend: Backend, model: Model, task: Task, data: Data) -> dict[str, Posteriors]:
    """Of some utterances, with the forced alignment of their references."""
    subsampling = backend.describe(model).subsampling
    tokens = data.tokenizer.vocabulary
    found = {}
    for batch, outputs in backend.predict(model, data.only(split, ids), task):
        for row, (utterance, log_probs) in enumerate(_rows(batch, outputs.log_probs, outputs.lengths)):
            spans = align(log_probs, batch.targets[row, : batch.target_lengths[row]].tolist())
            named = [(tokens[span.label], span.start, span.end) for span in spans] if spans is not None else None
            found[utterance] = Posteriors(log_probs, tokens, named, data.features.frame_rate / subsampling)
    return found


def _rows(batch: Batch, log_probs: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> list[tuple[str, npt.NDArray[np.float32]]]:
    return [(utterance, log_probs[row, : lengths[row]]) for row, utterance in enumerate(batch.ids)]


class _Sounds:
    """Utterances as MP3, until the page holds enough of them."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._room = _AUDIO_LIMIT

    def of(self, cut: MonoCut) -> bytes | None:
        """The sound of an utterance; None when there is no room for it."""
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
