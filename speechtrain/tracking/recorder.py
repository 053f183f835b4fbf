"""Records one run in every tracker that the config names."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechtrain.addresses import masked
from speechtrain.backends.checkpoint_files import last_checkpoint
from speechtrain.config.checkpoint_values import without_checkpoint_files
from speechtrain.config.experiment import ExperimentConfig, class_name
from speechtrain.console import console, waiting
from speechtrain.errors import DiskError, RunError, RunPaused, RunPruned, UserError
from speechtrain.processes import interrupts
from speechtrain.tracking import provenance
from speechtrain.tracking.base import DatasetInfo, ModelFiles, RunInfo
from speechtrain.tracking.guarded import build_tracker
from speechtrain.tracking.run_folder import UTTERANCES, note_places, read_run_file, write_run_file
from speechtrain.tracking.run_names import name_of_run

if TYPE_CHECKING:
    from speechtrain.backends.callbacks import Callback
    from speechtrain.data.task_data import PreparedCorpus
    from speechtrain.tasks.base import Sample
    from speechtrain.tracking.base import Status, Tracker

log = logging.getLogger(__name__)

RESUMED = "speechtrain.resumed"
"""Tag of a run that was resumed with other values: the epoch from which each holds, and what it was."""

DIAGNOSIS = "speechtrain.diagnosis"
"""Tag of a run that does not learn: what was found, see `speechtrain.training.diagnosis`."""

_EXAMPLE_SECONDS = 10.0


@dataclass(frozen=True)
class RunRequest:
    """Holds what is asked of a run besides its config.

    Attributes:
        overrides: the command line's overrides.
        test: what kind of test the run is; None for a real run.
        tags: tags besides the usual ones.
        name: the run's name; None takes `name_of_run`.
        parents: ids of the runs that it is nested in, by tracker.
    """

    overrides: Sequence[str] = ()
    test: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    parents: Mapping[str, str] = field(default_factory=dict)


class NotOpenedError(UserError):
    """A tracker could not open its run; the message says why."""

    def __init__(self, tracker: Tracker, reason: str) -> None:
        super().__init__(reason)
        self.tracker = tracker

    def __reduce__(self) -> tuple[type[UserError], tuple[str]]:
        return UserError, (str(self),)


class RunRecorder:
    """Sends what happens in a run to its trackers, none of which makes the training wait."""

    def __init__(self, trackers: Mapping[str, Tracker], folder: Path) -> None:
        self.trackers = trackers
        self.folder = folder

    def open(self) -> None:
        """Wait until the trackers have opened their runs, and keep their ids and places in `run.json`.

        Raises:
            NotOpenedError: one cannot be opened.
        """
        run_ids = {}
        for name, tracker in self.trackers.items():
            try:
                run_id = tracker.opened()
            except UserError as error:
                raise NotOpenedError(tracker, str(error)) from error
            if run_id is not None:
                run_ids[name] = run_id
        write_run_file(self.folder, {"run_ids": run_ids, "mlflow_run_id": run_ids.get("mlflow")})
        note_places(self.folder, {name: dict(tracker.place) for name, tracker in self.trackers.items() if tracker.place})

    @property
    def run_ids(self) -> dict[str, str]:
        """Return the ids of the run, by tracker."""
        return dict(read_run_file(self.folder).get("run_ids", {}))

    def epochs(self, every_n_steps: int | None) -> Callback:
        """Return the callback that sends the metrics of each epoch."""
        from speechtrain.tracking.callback import Track

        return Track(self.trackers.values(), every_n_steps)

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Send metrics that do not come from an epoch of the training."""
        for tracker in self.trackers.values():
            tracker.log_values(metrics, step)

    def data(self, cfg: ExperimentConfig, data: PreparedCorpus) -> dict[str, str]:
        """Send fingerprints and sizes of the splits, and return the fingerprints by split."""
        from speechtrain.data.corpus import SPLITS

        name = class_name(cfg.corpus).lower()
        source = str(cfg.corpus.get("root") or cfg.corpus.get("split_dir") or f"made by {cfg.corpus['_target_']}")
        fingerprints = {}
        for split in (each for each in SPLITS if len(data.corpus.splits[each])):
            info = DatasetInfo(name, split, data.fingerprint(split), source, data.facts(split))
            fingerprints[split] = info.fingerprint
            for tracker in self.trackers.values():
                tracker.log_dataset(info)
        for tracker in self.trackers.values():
            for split, fingerprint in fingerprints.items():
                tracker.set_tag(f"data.fingerprint.{split}", fingerprint)
        listened = bool(data.cache.checksums)  # otherwise both are the same
        utterances = {split: data.fingerprint(split, audio=False) for split in fingerprints} if listened else fingerprints
        write_run_file(self.folder, {"data": fingerprints, UTTERANCES: utterances})
        return fingerprints

    def changes(self, noted: str | None) -> None:
        """Send what a run that was resumed has changed so far; None: nothing."""
        for tracker in self.trackers.values() if noted is not None else ():
            tracker.set_tag(RESUMED, str(noted))

    def transcripts(self, samples: Sequence[Sample]) -> None:
        """Send a table of references and hypotheses, or of the measures of each utterance."""
        if not samples:
            return
        columns: dict[str, list[Any]] = {"id": [sample.id for sample in samples]}
        texts = any(sample.reference or sample.hypothesis for sample in samples)
        if texts:
            columns["reference"] = [sample.reference for sample in samples]
            columns["hypothesis"] = [sample.hypothesis for sample in samples]
        if any(sample.confidence is not None for sample in samples):
            columns["confidence"] = [None if each.confidence is None else round(each.confidence, 4) for each in samples]
        columns |= {name: [round(sample.measures[name], 6) for sample in samples] for name in samples[0].measures}
        for tracker in self.trackers.values():
            tracker.log_table("transcripts" if texts else "measures", columns)

    def checkpoints(self, paths: Sequence[Path]) -> None:
        """Send files of models to the trackers that keep them."""
        for tracker in self.trackers.values():
            for path in paths:
                tracker.log_checkpoint(path)

    def last(self) -> None:
        """Have the trackers keep what the run would go on from if it were made longer, with its results in `run.json`."""
        for tracker in self.trackers.values() if last_checkpoint(self.folder) is not None else ():
            tracker.log_last(self.folder)

    def files(self, paths: Sequence[Path]) -> None:
        """Send pictures, pages and texts, each under the folder that it has in the run's folder."""
        for tracker in self.trackers.values():
            for path in paths:
                inside = path.parent.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else ""
                tracker.log_file(path, "" if inside == "." else inside)

    def diagnosis(self, codes: Sequence[str], path: Path) -> None:
        """Send what keeps a run from learning: a tag with the names of what was found, or `none`, and the file that says more."""
        for tracker in self.trackers.values():
            tracker.set_tag(DIAGNOSIS, ", ".join(codes) or "none")
        self.files([path])

    @property
    def wants_model(self) -> bool:
        """Return whether one of the trackers keeps models."""
        return any(tracker.keeps_models for tracker in self.trackers.values())

    def model(self, weights: Path, data: PreparedCorpus, facts: Mapping[str, float]) -> None:
        """Send the trained model, with an example of its input."""
        rate = data.features.sample_rate
        example = data.example_samples()[: int(_EXAMPLE_SECONDS * rate)]
        for tracker in self.trackers.values():
            tracker.log_model(ModelFiles(weights, rate, [round(float(value), 5) for value in example], facts))

    def print_whereabouts(self) -> None:
        """Print where each tracker shows the run."""
        for tracker in self.trackers.values():
            console.print(tracker.how_to_look())


def _hides_interrupt(error: BaseException, *, lost: bool) -> bool:
    """Return whether Ctrl-C struck a library while it put something in order, which then failed with an error of its own (OmegaConf does).

    An error of this package is reported as it is: the message about a process that died, for example, states its own cause.

    Args:
        error: what the run ended with.
        lost: whether an interrupt came that was not seen otherwise.
    """
    seen: BaseException | None = error if not isinstance(error, (RunError, UserError)) else None
    while seen is not None and not lost and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


@contextmanager
def recorded(cfg: ExperimentConfig, folder: Path, request: RunRequest) -> Iterator[RunRecorder]:
    """Open the trackers of a run, give its recorder, and close them with the status that the run really ended with.

    Args:
        cfg: the run's config.
        folder: the run's folder.
        request: overrides, tags and parents of the run.
    """
    trackers: dict[str, Tracker] = {name: build_tracker(name, child) for name, child in cfg.tracking.items()}
    infos = _run_infos(cfg, folder, request)
    open_trackers: list[Tracker] = []
    status: Status = "FAILED"
    closing = ExitStack()
    try:
        for name, tracker in trackers.items():
            tracker.start(infos(name))
            open_trackers.append(tracker)
        yield RunRecorder(trackers, folder)
        interrupts.check()
        closing.enter_context(interrupts.deferred())
        status = "FINISHED"
    except NotOpenedError as error:
        open_trackers = [tracker for tracker in open_trackers if tracker is not error.tracker]
        raise
    except KeyboardInterrupt:
        interrupts.forget()
        status = "KILLED"
        raise
    except RunPruned as error:
        status = "KILLED"
        for tracker in open_trackers:
            tracker.set_tag("paused" if isinstance(error, RunPaused) else "pruned", str(error))
        raise
    except Exception as error:
        if _hides_interrupt(error, lost=interrupts.forget()):
            status = "KILLED"
            raise KeyboardInterrupt from error
        for tracker in open_trackers:
            tracker.set_tag("error", masked(f"{type(error).__name__}: {error}"))
        raise
    finally:
        closing.enter_context(interrupts.deferred())
        with closing:
            _close(open_trackers, folder, status)


def _close(trackers: Sequence[Tracker], folder: Path, status: Status) -> None:
    """Note how a run ended, in `run.json` and in its trackers, and wait for these.

    Raises:
        DiskError: `run.json` cannot be written. A run that failed has said so, or something that matters more.
    """
    for tracker in trackers:
        tracker.note_end(status)
    try:
        write_run_file(folder, {"status": status})
    except DiskError:
        if status == "FINISHED":
            raise
    finally:
        with waiting("sending what is left to the trackers"):
            for tracker in trackers:
                tracker.finish(status)


def _run_infos(cfg: ExperimentConfig, folder: Path, request: RunRequest) -> Callable[[str], RunInfo]:
    """Note in `run.json` that the run has started, and return what gives the information on it for a tracker, by the tracker's name."""
    stored = read_run_file(folder)
    run_ids, uid = stored.get("run_ids", {}), stored.get("uid") or uuid.uuid4().hex
    test = {"speechtrain.test_run": request.test} if request.test else {}
    tags = provenance.run_tags(request.overrides) | {"seed": str(cfg.seed)} | test | dict(request.tags)
    texts = {"config.yaml": cfg.as_yaml(), "overrides.txt": "\n".join(request.overrides)}
    if diff := provenance.git_diff():
        texts["git.diff"] = diff
    texts = {name: masked(text) for name, text in texts.items()}
    values = without_checkpoint_files(cfg.as_dict())
    default_name = name_of_run(values, request.overrides, request.test)
    write_run_file(folder, {"uid": uid, "status": "RUNNING"})
    return lambda tracker: RunInfo(
        request.name or cfg.run_name or default_name, folder, values, tags, texts, run_ids.get(tracker), uid, request.parents.get(tracker)
    )
