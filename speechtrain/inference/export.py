"""Export of a trained model to other runtimes; each file is tested in its own runtime before it is reported as done."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from speechtrain.config.checkpoint_values import with_hub_names
from speechtrain.config.checks import unknown_formats
from speechtrain.config.experiment import class_name, kind_of_test
from speechtrain.config.extras import modules_of, needed
from speechtrain.config.hub import hub_name, language_of
from speechtrain.config.overlay import overlaid
from speechtrain.config.pretrained import is_checkpoint
from speechtrain.config.schemas.commands import ExportConfig
from speechtrain.config.targets import class_constant
from speechtrain.console import console, errors
from speechtrain.errors import ConfigError, Problem, UserError, unwritable
from speechtrain.inference import hub_folder
from speechtrain.inference.find import results_folder, run_folder, stored_for
from speechtrain.tracking.run_folder import read_run_file

if TYPE_CHECKING:
    from speechtrain.data.batches import Batch
    from speechtrain.data.corpus import Cut
    from speechtrain.data.task_data import PreparedCorpus
    from speechtrain.inference.runtimes import ModelFunction


_TOLERANCE = 2e-3  # of a value, relative to 1 + its size


_ARCHIVE = "archive"
_KEPT = (
    *("history.jsonl", "history.csv", "run.json", "transcripts.json", "speechtrain.log", "*.png", "*.html"),
    *(f"{folder}/**/*" for folder in ("transcripts", "classes", "signals", "evaluation-*")),
)
"""The files of a run that an archive holds besides the model, as patterns: history, curves, reports, evaluations and the log."""


@dataclass(frozen=True)
class ExportResult:
    """Measurements of an exported file in its own runtime.

    Attributes:
        megabytes: size of the file in MB.
        latency_ms: median time for an utterance alone, ms.
        real_time_factor: median processing time per second of audio, s.
        difference: greatest difference from the model's values, relative to 1 + their size; None for the model itself.
        metrics: metrics of the task, over the utterances that the file was tested on.
        remark: what else was measured, a line for people.
    """

    kind: str
    path: Path | None
    megabytes: float
    latency_ms: float
    real_time_factor: float
    difference: float | None
    metrics: dict[str, float]
    remark: str = ""


class Export:
    """Exports a model, and tests each file on some utterances.

    Args:
        cfg: config of `conf/export.yaml`.
        overrides: overrides of the model's config.

    Raises:
        UserError: the model or the data cannot be used, or a format is not available.
    """

    def __init__(self, cfg: ExportConfig, overrides: Sequence[str]) -> None:
        self.cfg = cfg
        self.weights, stored, self.vocabulary = stored_for(cfg)
        self.run = run_folder(self.weights)
        kinds = [str(kind) for kind in cfg.format]
        if stored.backend_name == "keras" and set(kinds) - {_ARCHIVE, "keras"}:
            stored = stored.with_values({"backend.engine": "tensorflow"})  # the weights are the same on every engine
        self.settings = overlaid(stored, overrides)
        formats = class_constant(str(self.settings.backend["_target_"]), "formats")
        if isinstance(formats, dict):  # of a backend of the user's own that inherits them it is known once it is built
            _check_formats(kinds, formats, self.settings.backend_name)
        if absent := list(needed("format", modules_of(kinds, self.settings.backend_name))):
            raise ConfigError([Problem(*rule) for rule in absent])
        self.folder = results_folder(self.weights, "exports", cfg.out)
        self.data = self._read(cfg.split)
        features = self.data.features if not self.data.features.from_audio else None
        size = self.data.corpus.target_size
        from speechtrain.inference.recognizer import Recognizer

        self.recognizer = Recognizer.of(self.weights, self.settings, self.vocabulary, features=features, target_size=size)
        _check_formats(kinds, self.recognizer.backend.formats, self.recognizer.backend.name)
        self.kinds = sorted(kinds, key=lambda kind: kind == _ARCHIVE)
        self.batches = self._utterances(self.data, cfg.split, cfg.utterances)
        self.frames = cfg.frames or max(int(batch.feature_lengths.max()) for batch in self.batches)
        if cfg.frames is not None:
            self.batches = [batch for batch in self.batches if int(batch.feature_lengths.max()) <= cfg.frames] or self.batches

    def _model(
        self, features: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Compute the outputs of the model itself, as a file's runtime does."""
        return self.recognizer.backend.infer(self.recognizer.model, features, lengths)

    def _read(self, split: str) -> PreparedCorpus:
        from speechtrain.data.prepare import prepare_split
        from speechtrain.data.text.base import build_tokenizer

        tokenizer = build_tokenizer(self.settings.tokenizer, vocabulary=self.vocabulary)
        return prepare_split(self.settings, split, tokenizer, threads=2)

    def _utterances(self, data: PreparedCorpus, split: str, count: int) -> list[Batch]:
        """Make batches of one utterance each, with lengths spread over the whole range."""
        alone = data.for_task(self.recognizer.task).with_limits(replace(data.limits, batch_size=1))
        return list(alone.loader_of(split, [cut.id for cut in _spread(data.corpus.splits[split], count)]))

    def make(self) -> tuple[list[ExportResult], list[str]]:
        """Write each format and try it out; return the results, and messages for the formats that failed.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            return self._make()
        except OSError as error:
            place = Path(error.filename or self.folder)
            if not place.is_relative_to(self.folder):
                raise
            raise unwritable(place, error, "out") from error

    def _make(self) -> tuple[list[ExportResult], list[str]]:
        from speechtrain.backends.base import Conversion
        from speechtrain.inference.bounds import check_bound
        from speechtrain.inference.convert import ConversionJob, convert
        from speechtrain.inference.runtimes import open_exported

        results = [self._try_out("model", None, self._model)]
        bad = []
        ranges = self._representative() if "tflite_int8" in self.kinds else ()
        for kind in self.kinds:
            try:
                if kind == _ARCHIVE:
                    results.append(self._archive([each.path for each in results if each.path is not None]))
                    continue
                if kind == hub_folder.NAME:
                    results.append(self._hub_folder(results[0].metrics))
                    continue
                if kind == "tflite_micro":
                    results.append(self._microcontroller())
                    continue
                path = self.folder / f"model{'_int8' if kind == 'tflite_int8' else ''}{self.recognizer.backend.formats[kind]}"
                tflite = self.cfg.tflite
                whole = tflite.operators == "int8"
                options = Conversion(self.recognizer.features.size, self.frames, ranges, whole, tflite.input, tflite.output)
                convert(ConversionJob(self.weights, self.settings, kind, path, options, bool(self.cfg.trust), self.data.corpus.target_size))
                with _only_if_good(path):
                    results.append(
                        self._try_out(kind, path, open_exported(kind, path), tolerance=inf if kind == "tflite_int8" else _TOLERANCE)
                    )
                    if kind == "tflite_int8":
                        check_bound(kind, "max_bytes", path.stat().st_size, tflite.max_bytes)
                self._facts(path, results[-1])
            except UserError as error:
                bad.append(str(error))
        return results, bad

    def _representative(self) -> list[npt.NDArray[np.float32]]:
        data, split = self._representative_data()
        return [batch.features for batch in self._utterances(data, split, self.cfg.representative)]

    def _representative_data(self) -> tuple[PreparedCorpus, str]:
        """Return the data, and its split, on which ranges of values are measured."""
        for split in ("val", "train"):
            try:
                return self._read(split), split
            except ConfigError:
                continue
        raise ConfigError([Problem("format", "int8 needs utterances that ranges are measured on", "give data.val")])

    def _microcontroller(self) -> ExportResult:
        """Write a folder for TensorFlow Lite Micro, tried on all utterances of the split."""
        from speechtrain.files import make_folder
        from speechtrain.inference.microcontroller.export import MicroModel
        from speechtrain.inference.microcontroller.folder import NAME

        data, split = self._representative_data()
        model = MicroModel(self.recognizer, self.weights, bool(self.cfg.trust), self.frames, self._name, self.cfg.tflite)
        path = self.folder / NAME
        make_folder(self.folder)
        cuts = self.data.corpus.splits[self.cfg.split]
        trial = model.write(path, self.data, cuts, (data, _spread(data.corpus.splits[split], self.cfg.representative)))
        return ExportResult(
            NAME,
            path,
            trial.model_bytes / 1e6,
            trial.latency_ms,
            trial.latency_ms / 1000 / model.device.seconds,
            trial.difference,
            dict(trial.metrics),
            trial.remark(self.frames),
        )

    def _try_out(self, kind: str, path: Path | None, run: ModelFunction, tolerance: float = _TOLERANCE) -> ExportResult:
        """Compare a runtime with the model, utterance by utterance and in batches.

        Raises:
            UserError: its values differ by more than the tolerance, or have other shapes.
        """
        scorer = self.recognizer.task.scorer()
        took, worst = [], 0.0
        run(self.batches[-1].features, self.batches[-1].feature_lengths)  # the first call of a runtime is slow
        for batch in self.batches:
            start = time.perf_counter()
            values, lengths = run(batch.features, batch.feature_lengths)
            took.append(time.perf_counter() - start)
            if path is not None:
                worst = max(worst, _difference(values, lengths, *self._model(batch.features, batch.feature_lengths)))
                if worst == inf:  # which could not be scored
                    break
            scorer.update(batch, _outputs(values, lengths))
        if path is not None:
            for features, lengths in _together(self.batches):
                worst = max(worst, _difference(*run(features, lengths), *self._model(features, lengths)))
        if worst == inf or worst > tolerance:
            what = "have other lengths, or are NaN or infinite" if worst == inf else f"differ by {worst:.3g}, {tolerance:g} is allowed"
            raise UserError(f"{kind}: its values differ from the model's: they {what}\n    -> choose another format")
        metrics = {name: float(value) for name, value in scorer.compute().items() if name != "loss"}
        factors = [one / batch.seconds for one, batch in zip(took, self.batches, strict=True)]
        size = _bytes(path or self.weights) / 1e6
        return ExportResult(
            kind, path, size, 1000 * statistics.median(took), statistics.median(factors), worst if path is not None else None, metrics
        )

    def _facts(self, path: Path, result: ExportResult) -> None:
        """Write the facts that a program needs to use the file, beside it."""
        from speechtrain.files import write_json
        from speechtrain.inference.runtimes import tensors_of

        tensors: dict[str, Any] = {
            "inputs": {"features": "(B, T, F) float32", "lengths": "(B,) frames of each"},
            "outputs": {"values": "(B, T', V)", "value_lengths": "(B,)"},
        }
        facts = {
            "format": result.kind,
            **(tensors_of(path) if result.kind in ("tflite", "tflite_int8") else tensors),
            "vocabulary": self.vocabulary,
            "subsampling": self.recognizer.backend.describe(self.recognizer.model).subsampling,
            "features": dict(self.settings.features),
            "megabytes": result.megabytes,
            "latency_ms": result.latency_ms,
            "difference": result.difference,
            "metrics": result.metrics,
        }
        write_json(path.with_suffix(f"{path.suffix}.json"), facts)

    def _hub_folder(self, metrics: Mapping[str, float]) -> ExportResult:
        """Write a folder for Transformers, and try it out there; it takes the place of an earlier one when it is good."""
        from speechtrain.backends.torch.huggingface import write_folder
        from speechtrain.inference.runtimes import open_exported

        model = self.recognizer
        run = read_run_file(self.run) if self.run is not None else {}
        tested = {name.removeprefix("test/"): value for name, value in run.get("metrics", {}).items() if name.startswith("test/")}
        card = hub_folder.Card(
            name=self._name,
            data=None if is_checkpoint(self.weights) else class_name(self.settings.corpus),
            scores=tested or metrics,
            measured_on="the test data" if tested else f"{len(self.batches)} utterances of `{self.cfg.split}`",
        )
        path = self.folder / hub_folder.NAME
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise UserError(f"{hub_folder.NAME}: {path} is there, and not a folder of an earlier export\n    -> set out to another folder")
        with TemporaryDirectory(dir=self.folder, prefix=".export-") as place:
            folder = Path(place) / hub_folder.NAME
            folder.mkdir()
            hub_folder.write_processor(model, folder)
            try:
                write_folder(model.model, folder, hub_folder.outputs_of(model))
            except NotImplementedError as error:
                raise UserError(f"{hub_folder.NAME}: {error}\n    -> choose another format; nothing was written") from None
            hub_folder.write_card(model, folder, card)
            result = self._try_out(hub_folder.NAME, folder, open_exported(hub_folder.NAME, folder))
            hub_folder.put_in_place(folder, path)
        return replace(result, path=path)

    @property
    def _name(self) -> str:
        """Return what the model is called: by its run, its name on the hub, or its file."""
        if self.run is not None:
            return self.run.name
        found = hub_name(str(self.weights))
        return found[0].rpartition("/")[2] if found is not None else self.weights.stem

    def _archive(self, exports: Sequence[Path]) -> ExportResult:
        """Write an archive with everything, and try it out as it is read again."""
        from speechtrain.inference.archive import SUFFIX, stored_config, write_archive
        from speechtrain.inference.recognizer import Recognizer

        test = kind_of_test(self.settings)
        name = f"{class_name(self.settings.model).lower()}-{self._name}"
        path = self.folder / f"{name if test is None else f'{name}-{test}'}{SUFFIX}"
        with TemporaryDirectory() as folder:
            name = f"weights{self.recognizer.backend.suffix}"
            weights = Path(folder) / name
            cfg = with_hub_names(self.settings)
            self.recognizer.backend.save(self.recognizer.model, weights, {"config": cfg.as_dict(), "vocabulary": self.vocabulary})
            files: dict[str, Path | str] = {
                name: weights,
                "config.yaml": cfg.as_yaml(),
                "vocabulary.json": json.dumps(self.vocabulary, ensure_ascii=False),
                **{
                    f"exports/{name}": each
                    for export in exports
                    for name, each in exported_files(export, recording=bool(self.cfg.tflite.recording))
                },
            }
            if self.run is not None:
                files |= {each: self.run / each for pattern in _KEPT for each in _found(self.run, pattern)}
            write_archive(path, files, {"weights": name, "backend": self.recognizer.backend.name})
        features, size = self.recognizer.features, self.data.corpus.target_size
        with _only_if_good(path):
            again = Recognizer.of(path, self.settings, stored_config(path, trust=self.cfg.trust)[1], features=features, target_size=size)
            return self._try_out(_ARCHIVE, path, partial(again.backend.infer, again.model))


def exported_files(path: Path, *, recording: bool) -> Iterator[tuple[str, Path]]:
    """Yield the files of an export that an archive holds, with their names: a file and its facts, or a folder for microcontrollers.

    Args:
        path: the export.
        recording: whether the files that hold a recording of the test data are among them.
    """
    from speechtrain.inference.microcontroller.folder import RECORDING

    left_out = () if recording else RECORDING
    if path.is_file():
        yield from ((each.name, each) for each in (path, path.with_suffix(f"{path.suffix}.json")))
    elif (path / "model.tflite").is_file():
        yield from (
            (f"{path.name}/{each.name}", each)
            for each in sorted(path.iterdir())
            if each.is_file() and not each.name.startswith(".") and each.name not in left_out
        )


def _spread(cuts: Sequence[Cut], count: int) -> list[Cut]:
    """Choose utterances with lengths spread over the whole range."""
    ordered = sorted(cuts, key=lambda cut: (cut.duration, cut.id))
    places = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int))
    return [ordered[int(place)] for place in places]


@contextmanager
def _only_if_good(path: Path) -> Iterator[None]:
    """Rename a file that fails to `bad_NAME`."""
    try:
        yield
    except UserError as error:
        bad = path.with_name(f"bad_{path.name}")
        path.replace(bad)
        raise UserError(f"{error}; the file is kept as {bad}") from error


def _bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder, behind which a language may be named."""
    path = Path(language_of(path)[0])
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) if path.is_dir() else path.stat().st_size


def _found(folder: Path, pattern: str) -> Iterator[str]:
    yield from (path.relative_to(folder).as_posix() for path in sorted(folder.glob(pattern)) if path.is_file() and not path.is_symlink())


def _outputs(values: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> Any:
    from speechtrain.tasks.base import Outputs

    return Outputs(values, lengths, np.zeros(len(values), dtype=np.float32))


def _difference(values: Any, lengths: Any, wanted: Any, wanted_lengths: Any) -> float:
    """Compute the greatest difference inside the lengths, relative to 1 + the value's size; infinite where the lengths differ."""
    if not np.array_equal(lengths, wanted_lengths):
        return inf
    worst = 0.0
    for row, length in enumerate(lengths):
        left, right = values[row, :length], wanted[row, :length]
        if left.shape != right.shape or not np.isfinite(left).all():
            return inf
        if left.size:
            worst = max(worst, float((np.abs(left - right) / (1 + np.abs(right))).max()))
    return worst


def _together(batches: Sequence[Batch]) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """Yield features and lengths of some utterances in batches of two and of four."""
    for size in (2, 4):
        step = max(1, len(batches) // size)
        some = batches[::step][:size]
        if len(some) < size:
            continue
        lengths = np.array([int(batch.feature_lengths[0]) for batch in some], dtype=np.int64)
        features = np.zeros((size, int(lengths.max()), some[0].features.shape[2]), dtype=np.float32)
        for row, batch in enumerate(some):
            features[row, : lengths[row]] = batch.features[0, : lengths[row]]
        yield features, lengths


def _check_formats(kinds: Sequence[str], formats: Iterable[str], backend: str) -> None:
    if problems := list(unknown_formats("format", kinds, formats, backend)):
        raise ConfigError(problems)


def print_export_results(results: Sequence[ExportResult]) -> None:
    """Print the results as a table, the model first."""
    from speechtrain.console import format_metric, print_table

    table = Table(box=None, pad_edge=False)
    names = list(results[0].metrics)
    for name in ("", "MB", "latency ms", "real-time factor", "difference", *names):
        table.add_column(name, justify="left" if not name else "right")
    for each in results:
        values = [format_metric(name, each.metrics[name]) for name in names]
        difference = "" if each.difference is None else f"{each.difference:.1e}"
        numbers = [f"{each.megabytes:.2f}", f"{each.latency_ms:.1f}", f"{each.real_time_factor:.4f}", difference]
        table.add_row(each.kind, *numbers, *values)
    print_table(table, turns=True)
    console.print()
    for each in results:
        if each.path is not None:
            console.print(f"{each.kind:<13}{each.path}", markup=False)
    for each in results:
        if each.remark:
            console.print(f"\n{each.remark}", markup=False)


def write_exports(cfg: ExportConfig, overrides: Sequence[str]) -> list[str]:
    """Write a model in the formats that are asked for, and print the measurements of each file beside those of the model.

    Args:
        cfg: config of `conf/export.yaml`.
        overrides: overrides of the model's config.

    Returns:
        A message for each file that failed; empty if none did.

    Raises:
        UserError: the model or the data cannot be used, or a format is not available.
    """
    export = Export(cfg, overrides)
    console.print(f"model       {export.weights}\ntried on    {len(export.batches)} utterances of {cfg.split}\n", markup=False)
    results, bad = export.make()
    print_export_results(results)
    for line in bad:
        errors.print(line, style="red", markup=False)
    return bad
