"""The laboratory notebook of one run: everything that is written down about it, for every tracker that the config names."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechtrain.config.build import build
from speechtrain.config.experiment import ExperimentConfig, class_name
from speechtrain.console import console
from speechtrain.errors import RunError, RunPruned, UserError, without_passwords
from speechtrain.tracking import provenance
from speechtrain.tracking.base import DatasetInfo, ModelFiles, RunInfo
from speechtrain.tracking.run_folder import read_run_file, write_run_file

if TYPE_CHECKING:
    from speechtrain.backends.callbacks import Callback
    from speechtrain.data.prepare import Data
    from speechtrain.tasks.base import Sample
    from speechtrain.tracking.base import Status, Tracker

log = logging.getLogger(__name__)

_EXAMPLE_SECONDS = 10.0


@dataclass(frozen=True)
class Given:
    """What a run is given besides its config.

    Attributes:
        overrides: as typed.
        test: what kind of test it is; None: a real run.
        tags: besides the usual ones.
        name: None: model and data.
        parents: ids of the runs that it stands under, by tracker.
    """

    overrides: Sequence[str] = ()
    test: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    parents: Mapping[str, str] = field(default_factory=dict)


class NotOpenedError(UserError):
    """A tracker could not open its run."""

    def __init__(self, tracker: Tracker, reason: str) -> None:
        super().__init__(reason)
        self.tracker = tracker

    def __reduce__(self) -> tuple[type[UserError], tuple[str]]:
        return UserError, (str(self),)


class Notebook:
    """The trackers of a run; none of them makes the training wait."""

    def __init__(self, trackers: Mapping[str, Tracker], folder: Path) -> None:
        self.trackers = trackers
        self.folder = folder

    def open(self) -> None:
        """Wait until the runs are open, and write their ids down.

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

    @property
    def run_ids(self) -> dict[str, str]:
        """By tracker, of those that have one."""
        return dict(read_run_file(self.folder).get("run_ids", {}))

    def epochs(self, every_n_steps: int | None) -> Callback:
        """What follows the training."""
        from speechtrain.tracking.callback import Track

        return Track(self.trackers.values(), every_n_steps)

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics that are known at once."""
        for tracker in self.trackers.values():
            tracker.log_metrics(metrics, step)

    def data(self, cfg: ExperimentConfig, data: Data) -> dict[str, str]:
        """Fingerprints and sizes of the splits; returns the fingerprints."""
        from speechtrain.data.corpus import SPLITS

        name = class_name(cfg.corpus).lower()
        source = str(cfg.corpus.get("root") or cfg.corpus.get("split_dir") or f"made by {cfg.corpus['_target_']}")
        found = {}
        for split in (each for each in SPLITS if len(data.corpus.splits[each])):
            info = DatasetInfo(name, split, data.fingerprint(split), source, data.facts(split))
            found[split] = info.fingerprint
            for tracker in self.trackers.values():
                tracker.log_dataset(info)
        for tracker in self.trackers.values():
            for split, fingerprint in found.items():
                tracker.set_tag(f"data.fingerprint.{split}", fingerprint)
        write_run_file(self.folder, {"data": found})
        return found

    def transcripts(self, samples: Sequence[Sample]) -> None:
        """References beside hypotheses, or the measures of each utterance, as a table."""
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
        """Files of models, if the config wants them kept."""
        for tracker in self.trackers.values():
            for path in paths:
                tracker.log_checkpoint(path)

    def files(self, paths: Sequence[Path]) -> None:
        """Pictures, pages, texts; one in a folder of the run's goes into that folder."""
        for tracker in self.trackers.values():
            for path in paths:
                inside = path.parent.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else ""
                tracker.log_file(path, "" if inside == "." else inside)

    @property
    def wants_model(self) -> bool:
        """Whether a tracker keeps models."""
        return any(tracker.keeps_models for tracker in self.trackers.values())

    def model(self, weights: Path, data: Data, facts: Mapping[str, float]) -> None:
        """The trained model with an example of its input, ready to be used."""
        rate = data.features.sample_rate
        example = data.example_samples()[: int(_EXAMPLE_SECONDS * rate)]
        for tracker in self.trackers.values():
            tracker.log_model(ModelFiles(weights, rate, [round(float(value), 5) for value in example], facts))

    def print_whereabouts(self) -> None:
        """How to look at it."""
        for tracker in self.trackers.values():
            console.print(tracker.how_to_look())


def _hides_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C struck a library while it put something in order, which then failed with an error of its own (OmegaConf does).

    An error of this package tells the truth itself: a process that died, for example, interrupts the one that waits for it.
    """
    seen: BaseException | None = error if not isinstance(error, (RunError, UserError)) else None
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


@contextmanager
def notebook(cfg: ExperimentConfig, folder: Path, given: Given) -> Iterator[Notebook]:
    """The run's notebook: its trackers are told to open, and closed with the truth about how it ended."""
    trackers: dict[str, Tracker] = {name: build("tracking", child) for name, child in cfg.tracking.items()}
    known = read_run_file(folder)
    run_ids, uid = known.get("run_ids", {}), known.get("uid") or uuid.uuid4().hex
    test = {"speechtrain.test_run": given.test} if given.test else {}
    tags = provenance.run_tags(given.overrides) | {"seed": str(cfg.seed)} | test | dict(given.tags)
    texts = {"config.yaml": cfg.as_yaml(), "overrides.txt": "\n".join(given.overrides)}
    texts = {name: without_passwords(text) for name, text in texts.items()}
    if diff := provenance.git_diff():
        texts["git.diff"] = diff
    default_name = f"{class_name(cfg.model)}-{class_name(cfg.corpus)}".lower()
    values = cfg.as_dict()
    begun: list[Tracker] = []
    status: Status = "FAILED"
    write_run_file(folder, {"uid": uid, "status": "RUNNING"})
    try:
        for name, tracker in trackers.items():
            info = RunInfo(given.name or default_name, folder, values, tags, texts, run_ids.get(name), uid, given.parents.get(name))
            tracker.start(info)
            begun.append(tracker)
        yield Notebook(trackers, folder)
        status = "FINISHED"
    except NotOpenedError as error:
        begun = [tracker for tracker in begun if tracker is not error.tracker]
        raise
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except RunPruned as error:
        status = "KILLED"
        for tracker in begun:
            tracker.set_tag("pruned", str(error))
        raise
    except Exception as error:
        if _hides_interrupt(error):
            status = "KILLED"
            raise KeyboardInterrupt from error
        for tracker in begun:
            tracker.set_tag("error", f"{type(error).__name__}: {error}")
        raise
    finally:
        for tracker in begun:
            tracker.finish(status)
        write_run_file(folder, {"status": status})
