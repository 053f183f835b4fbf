"""Keywords in audio that goes on: windows, averaged probabilities and a threshold, as a program on a microcontroller finds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from speechtrain.config.schemas.commands import SpotConfig
from speechtrain.data.batches import stack_features
from speechtrain.errors import ConfigError, Problem, UserError
from speechtrain.files import atomically, make_folder, write_json

if TYPE_CHECKING:
    from speechtrain.data.audio import Audio
    from speechtrain.inference.recognizer import Recognizer

_TOGETHER = 64  # windows that the model computes at once

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """A keyword that was found.

    Attributes:
        label: the class.
        seconds: end of the window with which it was found.
    """

    label: int
    seconds: float


@dataclass(frozen=True)
class Point:
    """Holds the errors at one threshold.

    Attributes:
        false_alarms: keywords found in the background.
        false_alarms_per_hour: of background.
        missed: share of the recordings of keywords in which their own was not found.
        wrong: share in which another one was found.
    """

    threshold: float
    false_alarms: int
    false_alarms_per_hour: float
    missed: float
    wrong: float


class Spotter:
    """Finds keywords in recordings of any length.

    Args:
        recognizer: a model of `task=classification`.
        cfg: lengths of windows and steps, what is averaged, held and ignored.

    Raises:
        UserError: the model is no classifier, or has no class that is a keyword.
    """

    def __init__(self, recognizer: Recognizer, cfg: SpotConfig) -> None:
        if recognizer.task.head.pool is None:
            name = type(recognizer.task).__name__
            raise UserError(f"from: keywords are found by models of task=classification, received {name}\n    -> give such a model")
        self._recognizer = recognizer
        self._cfg = cfg
        names = recognizer.tokenizer.vocabulary
        self._keywords = np.array([name not in cfg.ignore for name in names])
        if not self._keywords.any():
            raise UserError("ignore: names all classes of the model\n    -> leave out those that are keywords")

    def probabilities(self, samples: Audio) -> Probabilities:
        """Compute the averaged probabilities (N, V) behind each step; the first window is filled up with silence before the recording."""
        rate = self._recognizer.sample_rate
        window, step = round(self._cfg.window * rate), round(self._cfg.step * rate)
        padded = np.concatenate([np.zeros(window - step, dtype=np.float32), samples])
        starts = range(0, max(1, len(padded) - window + 1), step)
        rows = [self._classified([padded[start : start + window] for start in some]) for some in _groups(starts)]
        values = np.cumsum(np.concatenate(rows), axis=0)
        sums = values - np.concatenate([np.zeros((min(self._cfg.smooth, len(values)), values.shape[1])), values])[: len(values)]
        averages: Probabilities = (sums / np.minimum(np.arange(1, len(values) + 1), self._cfg.smooth)[:, None]).astype(np.float32)
        return averages

    def _classified(self, windows: Sequence[Audio]) -> Probabilities:
        features = self._recognizer.features
        batch = stack_features([features.finish(features.mel(features.spectrum(each))) for each in windows])
        values, _ = self._recognizer.backend.infer(self._recognizer.model, *batch)
        probabilities: Probabilities = np.exp(values[:, 0])
        return probabilities

    def found(self, probabilities: Probabilities, threshold: float) -> list[Found]:
        """Return the keywords whose averaged probability reaches a threshold; behind each one others are not reported for a while."""
        keywords = np.where(self._keywords[None, :], probabilities, 0)
        found: list[Found] = []
        for index in np.flatnonzero(keywords.max(1) >= threshold):
            seconds = float((index + 1) * self._cfg.step)
            if not found or seconds - found[-1].seconds > self._cfg.hold:
                found.append(Found(int(keywords[index].argmax()), seconds))
        return found

    def curve(self, background: Iterable[Audio], spoken: Iterable[tuple[int, Audio]]) -> tuple[list[Point], float]:
        """Measure errors at each threshold.

        Args:
            background: recordings without keywords.
            spoken: labels and recordings of keywords.

        Returns:
            The errors, and the hours of background.
        """
        rate, samples = self._recognizer.sample_rate, 0
        talk = []
        for recording in background:
            samples += len(recording)
            talk.append(self.probabilities(recording))
        silence = np.zeros(round(self._cfg.window * rate), dtype=np.float32)
        words = [(label, self.probabilities(np.concatenate([silence, recording, silence]))) for label, recording in spoken]
        hours = samples / rate / 3600
        points = []
        for threshold in self._cfg.thresholds:
            alarms = sum(len(self.found(each, threshold)) for each in talk)
            labels = [(label, {item.label for item in self.found(each, threshold)}) for label, each in words]
            missed = sum(label not in others for label, others in labels) / max(1, len(labels))
            wrong = sum(bool(others - {label}) for label, others in labels) / max(1, len(labels))
            points.append(Point(threshold, alarms, alarms / hours, missed, wrong))
        return points, hours


def read_background(recognizer: Recognizer, files: Sequence[Path]) -> Iterator[Audio]:
    """Read recordings at the model's rate."""
    from speechtrain.data.audio import read_recording

    yield from (read_recording(file, recognizer.sample_rate, channel=recognizer.channel) for file in files)


def read_keywords(recognizer: Recognizer, split: str, ignore: Sequence[str]) -> list[tuple[int, Audio]]:
    """Read the labels and samples of the utterances of a split of the model's data.

    Args:
        recognizer: the model.
        split: train, val or test.
        ignore: classes that are no keywords, whose utterances are left out.

    Raises:
        ConfigError: the split has no utterances of keywords.
    """
    from speechtrain.data.batches import Reference
    from speechtrain.data.prepare import prepare_split

    data = prepare_split(recognizer.cfg, split, recognizer.tokenizer, threads=2)
    targets = ((recognizer.task.target(Reference(cut.text)), cut) for cut in data.corpus.splits[split])
    names = recognizer.tokenizer.vocabulary
    words = [
        (int(target[0]), data.corpus.read(cut, recognizer.sample_rate))
        for target, cut in targets
        if len(target) and names[int(target[0])] not in ignore
    ]
    if not words:
        raise ConfigError([Problem("split", f"{split} has no utterances of the model's keywords", "give another split")])
    return words


def write_curve(points: Sequence[Point], hours: float, folder: Path) -> Path:
    """Write the curve as a table and as JSON; returns the table."""
    make_folder(folder)
    write_json(folder / "spotting.json", {"background_hours": hours, "points": [asdict(point) for point in points]})
    lines = ["threshold\tfalse_alarms_per_hour\tmissed\twrong"]
    lines += [f"{point.threshold:g}\t{point.false_alarms_per_hour:.4g}\t{point.missed:.4f}\t{point.wrong:.4f}" for point in points]
    path = folder / "spotting.tsv"
    with atomically(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _groups(starts: range) -> Iterator[range]:
    yield from (starts[place : place + _TOGETHER] for place in range(0, len(starts), _TOGETHER))
