"""The sweep's own run in the trackers: its trials stand under it, and it holds the report, the best config and what it all cost."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from speechtrain.config.build import build
from speechtrain.errors import RunError, UserError, without_passwords
from speechtrain.processes.fresh import FreshCall
from speechtrain.sweep.study.cost import costs, table
from speechtrain.sweep.study.storage import exclusively
from speechtrain.sweep.study.study import describe
from speechtrain.tracking import provenance
from speechtrain.training.limits import kind_of_test

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from speechtrain.sweep.study.study import Study
    from speechtrain.tracking.base import Status, Tracker

log = logging.getLogger(__name__)

RUN = "speechtrain:run"
"""User attribute of a study: the name by which its run is found."""
REPORT = "sweep_report.html"
_EVERY = 60.0
"""Seconds between reports while a sweep runs; longer where a report takes long to make."""


class SweepNotebook:
    """What a sweep writes down, for every tracker whose runs can stand under others.

    Args:
        cfg: the config that all trials share.
        study: of the sweep.
        objectives: metrics; empty: what the program returns.
        folder: of the sweep.
        settings: of the sweeper, to be written down.
        overrides: as typed.
    """

    def __init__(
        self, cfg: DictConfig, study: Study, objectives: Sequence[str], folder: Path, settings: Mapping[str, Any], overrides: Sequence[str]
    ) -> None:
        self.study = study
        self.objectives = list(objectives) or ["value"]
        self.folder = folder
        self.settings = settings
        self.overrides = overrides
        self.parents: dict[str, str] = {}
        self._test = kind_of_test(cfg)
        self._wants_page = cfg.report.enabled is not False
        self._kinds = dict((cfg.get("tracking") or {}).items())
        self._trackers: dict[str, Tracker] = {}
        self._page: FreshCall[None] | None = None
        self._page_began = 0.0
        self._next_page = 0.0
        self._reported = -1
        self._told = -1

    def open(self) -> None:
        """Open the run, or find that of the study again.

        Raises:
            UserError: a tracker cannot be reached.
        """
        from speechtrain.tracking.base import RunInfo

        trackers = {name: build("tracking", node) for name, node in self._kinds.items()}
        self._trackers = {name: tracker for name, tracker in trackers.items() if tracker.nests}
        if not self._trackers:
            return
        tags = provenance.run_tags(["-m", *self.overrides]) | {"speechtrain.kind": "sweep", "speechtrain.study": self.study.name}
        tags |= {"speechtrain.test_run": self._test} if self._test else {}
        texts = {
            "overrides.txt": without_passwords("\n".join(self.overrides)),
            "space.json": json.dumps(describe(self.study.space), indent=2, ensure_ascii=False),
        }
        with exclusively(self.study.url, self.study.storage, self.study.name):  # sweepers that share a study share its run
            info = RunInfo(self.study.name, self.folder.absolute(), self.settings, tags, texts, uid=self._uid())
            for tracker in self._trackers.values():
                tracker.start(info)
            for name, tracker in self._trackers.items():
                run_id = tracker.opened()
                if run_id is not None:
                    self.parents[name] = run_id
        self._next_page = time.monotonic() + _EVERY

    def _uid(self) -> str:
        """A name that everybody who works on the study finds."""
        known = self.study.storage.get_study_user_attrs(self.study.id).get(RUN)
        if known is None:
            known = uuid.uuid4().hex
            self.study.storage.set_study_user_attr(self.study.id, RUN, known)
        return str(known)

    def update(self, trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial]) -> None:
        """While the sweep runs: counts after each trial, and a report now and then, made by a process of its own."""
        if not self._trackers:
            return
        done = sum(trial.state.is_finished() for trial in trials)
        if done != self._told and done:
            self._told = done
            self._log_metrics(trials, best, done)
        now = time.monotonic()
        if self._page is not None and not self._page.is_running():
            self._next_page = now + max(_EVERY, 20 * (now - self._page_began))
            self._finish_page(self._page)
            self._page = None
        if self._wants_page and self._page is None and done != self._reported and now >= self._next_page:
            self._reported, self._page_began = done, now
            self._page = self._start_page()

    def _log_metrics(self, trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial], done: int) -> None:
        found = costs(trials)
        metrics = {f"trials/{state}": float(count) for state, count in found.counts.items()}
        metrics |= {"cost/cpu_h": found.cpu_hours, "cost/audio_h": found.audio_hours, "cost/saved_by_pruning_h": found.saved_hours}
        if len(self.objectives) == 1 and best and best[0].values:
            metrics[f"best/{self.objectives[0]}"] = float(best[0].values[0])
        for tracker in self._trackers.values():
            tracker.log_metrics(metrics, done)

    def _start_page(self) -> FreshCall[None]:
        return FreshCall(_write_page, self.folder / REPORT, self.study.url, self.study.name, self.objectives, quiet=True)

    def _finish_page(self, page: FreshCall[None], timeout: float | None = None) -> None:
        """Wait for a page and hand it to the trackers; a sweep does not fail because its page cannot be made."""
        try:
            page.result(timeout)
        except Exception as error:  # noqa: BLE001 # whatever a storage or a plot raises
            log.warning("the sweep's report could not be made: %s", error)
        else:
            self._log_files([self.folder / REPORT])

    def _log_files(self, paths: Sequence[Path]) -> None:
        for tracker in self._trackers.values():
            for path in paths:
                if path.is_file():
                    inside = path.parent.relative_to(self.folder).as_posix()
                    tracker.log_file(path, "" if inside == "." else inside)

    def close(self, status: Status, trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial], error: BaseException | None = None) -> None:
        """The last report, the best config and all trials; then the run is closed, truthfully."""
        if not self._trackers:
            return
        try:
            if self._page is not None:
                self._finish_page(self._page, timeout=120)
            if any(trial.state.is_finished() for trial in trials):
                self._log_metrics(trials, best, sum(trial.state.is_finished() for trial in trials))
                for tracker in self._trackers.values():
                    tracker.log_table("trials", table(trials, self.objectives))
                    if best:
                        tracker.set_tag("best_trial", str(best[0].number))
                if self._wants_page:
                    self._finish_page(self._start_page(), timeout=300)
                self._log_files([self.folder / name for name in ("trials.csv", "optimization_results.yaml", "experiment/best.yaml")])
        except OSError as problem:
            log.warning("the sweep's report could not be written: %s", problem)
        finally:
            for tracker in self._trackers.values():
                if error is not None and isinstance(error, (UserError, RunError)):
                    tracker.set_tag("error", str(error))
                tracker.finish(status)


def _write_page(path: Path, *study: Any) -> None:
    """Write the page in a fresh process: this one would keep the 4 seconds of imports and the memory."""
    from speechtrain.sweep.report.page import write_page

    write_page(path, *study)


def settings_of(options: Any, space: Mapping[str, Any]) -> dict[str, Any]:
    """The sweeper's own config and the space, as parameters of the run."""
    values = OmegaConf.to_container(OmegaConf.create({key: value for key, value in vars(options).items() if key != "check"}))
    assert isinstance(values, dict)
    return {"sweeper": {str(key): value for key, value in values.items()}, "space": dict(space)}
