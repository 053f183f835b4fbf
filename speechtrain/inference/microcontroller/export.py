"""Converts a trained classifier for TensorFlow Lite Micro, tries it on the windows of a split, and writes the folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch

from speechtrain.backends.base import Conversion
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.schemas.commands import TfLite
from speechtrain.data.batches import Batch, Reference, stack_features, stack_targets
from speechtrain.data.corpus import Cut
from speechtrain.data.features.microfrontend import STEPS, MicroFrontend
from speechtrain.data.task_data import PreparedCorpus
from speechtrain.errors import UserError
from speechtrain.inference.bounds import check_bound
from speechtrain.inference.convert import ConversionJob, Twin, convert, twin_config
from speechtrain.inference.microcontroller.folder import NAME, Device, write_folder
from speechtrain.inference.microcontroller.trial import Trial, try_model
from speechtrain.inference.microcontroller.windows import Window, windows_of
from speechtrain.inference.recognizer import Recognizer
from speechtrain.tasks.base import Outputs

_TOGETHER = 32  # windows that the model in floating point computes at once
_LEAST = 1e-6  # of a probability, whose logarithm is taken
_COMPARED = 4  # windows on which the Keras model with the weights of one of Torch is compared with that


@dataclass(frozen=True)
class MicroModel:
    """A trained classifier that is to run on a device.

    Attributes:
        recognizer: the model.
        weights: its checkpoint or archive.
        trust: whether its config may name classes of other packages.
        frames: frames T of a window.
        name: of the run.
        bounds: keys of which `max_...` bound what it may need.
    """

    recognizer: Recognizer
    weights: Path
    trust: bool
    frames: int
    name: str
    bounds: TfLite

    @property
    def device(self) -> Device:
        """Return what the device must know of the model besides its weights."""
        return Device(self.recognizer.tokenizer.vocabulary, self.frames, self.recognizer.features, self.name)

    @property
    def settings(self) -> ExperimentConfig:
        """Return the config of the model."""
        return self.recognizer.cfg

    def write(self, path: Path, data: PreparedCorpus, cuts: Sequence[Cut], representative: tuple[PreparedCorpus, Sequence[Cut]]) -> Trial:
        """Convert, try and write the model.

        Args:
            path: the folder that is written.
            data: reads the utterances that it is tried on.
            cuts: these utterances.
            representative: utterances on which ranges of values are measured, with what reads them.

        Raises:
            UserError: the model is no classifier, has no counterpart in Keras, or cannot be run.
            OSError: the folder cannot be written.
        """
        task = self.recognizer.task
        if task.head.pool is None or not task.head.log_softmax:
            raise UserError(
                f"{NAME}: is for models of task=classification, received {type(task).__name__}\n    -> choose format=tflite_int8"
            )
        ranges = windows_of(*representative, self.frames).windows
        windows, longer, unreadable = windows_of(data, cuts, self.frames)
        if not windows or not ranges:
            what = f"no utterance fits into a window of {self.frames} frames"
            raise UserError(f"{NAME}: {what}\n    -> set frames to more, or leave it out")
        with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            file = Path(folder) / "model.tflite"
            convert(self._job(file, self._ranges(ranges), windows[:_COMPARED]))
            model = file.read_bytes()
        try:
            run = try_model(model, windows, self._probabilities(windows))
            accuracy = self._scores(windows, run.floating)["accuracy"]
            trial = replace(run, longer=longer, unreadable=unreadable, accuracy=accuracy, metrics=self._scores(windows, run.whole))
            self._check(trial)
        except UserError as error:
            bad = path.with_name(f"bad_{NAME}.tflite")
            bad.write_bytes(model)
            raise UserError(f"{error}; the model is kept as {bad}") from error
        write_folder(path, model, trial, self.device, windows[0])
        return trial

    def _ranges(self, windows: Sequence[Window]) -> list[npt.NDArray[np.float32]]:
        """Return features (1, T, F) whose ranges are measured; those that are whole numbers on the device reach from end to end."""
        features = [window.features[None] for window in windows]
        if isinstance(self.recognizer.features, MicroFrontend):
            features[0] = features[0].copy()
            features[0][0, 0, :2] = np.array([-128, 127]) / STEPS
        return features

    def _job(self, file: Path, ranges: Sequence[npt.NDArray[np.float32]], compared: Sequence[Window]) -> ConversionJob:
        options = Conversion(self.recognizer.features.size, self.frames, ranges)
        backend, model = self.recognizer.backend, self.recognizer.model
        if backend.name == "keras":
            return ConversionJob(self.weights, self.settings, NAME, file, options, self.trust)
        features, lengths = _batch(compared)
        try:
            twin = Twin(backend.layer_weights(model), features, lengths, backend.infer(model, features, lengths)[0])
            return ConversionJob(self.weights, twin_config(self.settings), NAME, file, options, self.trust, twin=twin)
        except NotImplementedError as error:
            raise UserError(f"{NAME}: {error}\n    -> train another model, such as model=matchboxnet or model=tdnn") from None

    def _check(self, trial: Trial) -> None:
        check_bound(NAME, "max_bytes", trial.model_bytes, self.bounds.max_bytes)
        check_bound(NAME, "max_arena_bytes", trial.memory.arena, self.bounds.max_arena_bytes)
        check_bound(NAME, "max_accuracy_loss", 100 * (trial.accuracy - trial.int8_accuracy), self.bounds.max_accuracy_loss)

    def _scores(self, windows: Sequence[Window], probabilities: npt.NDArray[np.float32]) -> dict[str, float]:
        """Compute the task's metrics, but for the loss, of probabilities (N, V)."""
        scorer = self.recognizer.task.scorer()
        targets = [self.recognizer.task.target(Reference(window.text)) for window in windows]
        batch = Batch(
            *_batch(windows[:1]),  # which a scorer does not look at
            *stack_targets(targets),
            ids=tuple(window.id for window in windows),
            texts=tuple(window.text for window in windows),
            seconds=0.0,
        )
        values = np.log(np.maximum(probabilities, _LEAST))[:, None]
        scorer.update(batch, Outputs(values, np.ones(len(windows), dtype=np.int64), np.zeros(len(windows), dtype=np.float32)))
        return {name: float(value) for name, value in scorer.compute().items() if name != "loss"}

    def _probabilities(self, windows: Sequence[Window]) -> npt.NDArray[np.float32]:
        backend, model = self.recognizer.backend, self.recognizer.model
        parts = [backend.infer(model, *_batch(some))[0][:, 0] for some in _groups(windows)]
        return np.exp(np.concatenate(parts))


def _batch(windows: Sequence[Window]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    return stack_features([torch.from_numpy(window.features) for window in windows])


def _groups(windows: Sequence[Window]) -> Iterator[Sequence[Window]]:
    yield from (windows[start : start + _TOGETHER] for start in range(0, len(windows), _TOGETHER))
