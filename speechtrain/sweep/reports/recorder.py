"""Records the sweep's own run in the trackers: the parent of its trials' runs, with the report, the best config and the cost.

What a person sees in the terminal is in `console.py`, the report itself in `page.py`.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from speechtrain.addresses import masked
from speechtrain.config.experiment import kind_of_test
from speechtrain.config.schemas.sweeps import SweeperOptions
from speechtrain.errors import RunError, UserError
from speechtrain.files import sqlite_file
from speechtrain.processes.fresh import FreshCall
from speechtrain.sweep.study.cost import SweepCost, trial_table
from speechtrain.sweep.study.folder import SharedFile
from speechtrain.sweep.study.results import Results
from speechtrain.sweep.study.storage import study_lock
from speechtrain.sweep.study.study import describe
from speechtrain.sweep.trial.attempts import FOLDER, RUN_IDS
from speechtrain.tracking import provenance

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from speechtrain.sweep.study.study import Study
    from speechtrain.tracking.base import Status, Tracker

log = logging.getLogger(__name__)

RUN = "speechtrain:run"
"""User attribute of a study: the unique id by which every sweeper finds the run."""
REPORT = "sweep_report.html"
REPORT_SECONDS = 60.0
"""Time between reports while a sweep runs; longer where a report takes long to make."""


class SweepRecorder:
    """Keeps a run of the sweep in every tracker that can nest runs.

    Args:
        cfg: the config that all trials share.
        study: study of the sweep.
        objectives: names of the metrics; empty: what the program returns.
        folder: folder of the sweep, absolute.
        settings: parameters of the run (`settings_of`).
        overrides: overrides as typed on the command line, without those of Hydra's own keys.
        hydra_overrides: overrides of Hydra's own keys as typed, `hydra.sweeper.*` among them.

    Attributes:
        parents: ids of the sweep's runs, by tracker.
    """

    def __init__(
        self,
        cfg: DictConfig,
        study: Study,
        objectives: Sequence[str],
        folder: Path,
        settings: Mapping[str, object],
        overrides: Sequence[str],
        hydra_overrides: Sequence[str] = (),
    ) -> None:
        self.study = study
        self.objectives = list(objectives) or ["value"]
        self.folder = folder
        self.settings = settings
        self.overrides = overrides
        self.hydra_overrides = hydra_overrides
        self.parents: dict[str, str] = {}
        self._test_run = kind_of_test(cfg)
        self._wants_page = cfg.report.enabled is not False
        self._tracking = dict((cfg.get("tracking") or {}).items())
        self._trackers: dict[str, Tracker] = {}
        self._page: FreshCall[None] | None = None
        self._page_started = 0.0
        self._next_page = 0.0
        self._done_in_page = -1
        self._cost = SweepCost()
        self._counted = 0

    def open(self) -> None:
        """Open the sweep's run, or reopen the one that the study has.

        Raises:
            UserError: a tracker cannot be reached.
        """
        from speechtrain.tracking.base import RunInfo
        from speechtrain.tracking.guarded import build_tracker

        trackers = {name: build_tracker(name, node) for name, node in self._tracking.items()}
        self._trackers = {name: tracker for name, tracker in trackers.items() if tracker.nests}
        if not self._trackers:
            return
        tags = provenance.run_tags(["-m", *self.overrides, *self.hydra_overrides])
        tags |= {"speechtrain.kind": "sweep", "speechtrain.study": self.study.name}
        tags |= {"speechtrain.test_run": self._test_run} if self._test_run else {}
        texts = {
            "overrides.txt": masked("\n".join([*self.overrides, *self.hydra_overrides])),
            "space.json": json.dumps(describe(self.study.space), indent=2, ensure_ascii=False),
        }
        with study_lock(self.study.url, self.study.name):  # sweepers that share a study share its run
            info = RunInfo(self.study.name, self.folder.absolute(), self.settings, tags, texts, uid=self._uid())
            for tracker in self._trackers.values():
                tracker.start(info)
            for name, tracker in self._trackers.items():
                run_id = tracker.opened()
                if run_id is not None:
                    self.parents[name] = run_id
        self._next_page = time.monotonic() + REPORT_SECONDS

    def files(self) -> list[SharedFile]:
        """Return the files of trackers that trials write to, wherever they run."""
        from speechtrain.tracking.mlflow.location import tracking_address

        if "mlflow" not in self._tracking:
            return []
        address = tracking_address(self._tracking["mlflow"].get("tracking_uri"))
        if not address.startswith("sqlite:///"):
            return []
        fix = "give the address of a server that all machines reach, as http://HOST:5000, or go without: tracking=[]"
        return [SharedFile("tracking.mlflow.tracking_uri", str(sqlite_file(address)), fix)]

    def abandon_runs(self, number: int, reason: str) -> None:
        """Close the runs of a trial whose process, or machine, is gone, if its folder is not here."""
        storage = self.study.storage
        trial = storage.get_trial(storage.get_trial_id_from_study_id_trial_number(self.study.id, number))
        folder = trial.user_attrs.get(FOLDER)
        if folder is None or Path(folder).is_dir():
            return
        for name, run_id in trial.user_attrs.get(RUN_IDS, {}).items():
            if name in self._trackers:
                self._trackers[name].abandon(str(run_id), reason)

    def delete_last(self, trial: FrozenTrial) -> None:
        """Delete what trackers keep for the runs of a paused trial to go on from, because it will not."""
        folder = trial.user_attrs.get(FOLDER)
        for name, run_id in trial.user_attrs.get(RUN_IDS, {}).items():
            if name in self._trackers:
                self._trackers[name].delete_last(str(run_id), None if folder is None else Path(folder))

    def _uid(self) -> str:
        """Return the unique id of the run, which the study stores for all sweepers that share it."""
        uid = self.study.storage.get_study_user_attrs(self.study.id).get(RUN)
        if uid is None:
            uid = uuid.uuid4().hex
            self.study.storage.set_study_user_attr(self.study.id, RUN, uid)
        return str(uid)

    def update(self, finished: Sequence[FrozenTrial], results: Results) -> None:
        """Log counts and cost after each trial, and now and then a report, which another process makes meanwhile.

        Args:
            finished: trials that have ended, the list of the last time and those that have ended since.
            results: the best of them.
        """
        if not self._trackers:
            return
        done = len(finished)
        if done != self._counted:
            self._log_metrics(finished, results)
        now = time.monotonic()
        if self._page is not None and not self._page.is_running():
            self._next_page = now + max(REPORT_SECONDS, 20 * (now - self._page_started))
            self._finish_page(self._page)
            self._page = None
        if self._wants_page and self._page is None and done != self._done_in_page and now >= self._next_page:
            self._done_in_page, self._page_started = done, now
            self._page = self._start_page()

    def _log_metrics(self, finished: Sequence[FrozenTrial], results: Results) -> None:
        for trial in finished[self._counted :]:
            self._cost.add(trial)
        self._counted = len(finished)
        cost = self._cost
        metrics = {f"trials/{state}": float(count) for state, count in cost.counts.items()}
        metrics |= {"cost/cpu_h": cost.cpu_hours, "cost/audio_h": cost.audio_hours, "cost/saved_by_pruning_h": cost.saved_hours}
        if len(self.objectives) == 1 and results.best_value is not None:
            metrics[f"best/{self.objectives[0]}"] = results.best_value
        for tracker in self._trackers.values():
            tracker.log_metrics(metrics, self._counted)

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
                    subfolder = path.parent.relative_to(self.folder).as_posix()
                    tracker.log_file(path, "" if subfolder == "." else subfolder)

    def close(self, status: Status, finished: Sequence[FrozenTrial], results: Results, error: BaseException | None = None) -> None:
        """Log the last report, the best config and all trials, and close the run with the status that the sweep had."""
        if not self._trackers:
            return
        try:
            if self._page is not None:
                self._finish_page(self._page, timeout=120)
            if finished:
                self._log_metrics(finished, results)
                trials = sorted(self.study.trials(), key=lambda trial: trial.number)
                for tracker in self._trackers.values():
                    tracker.log_table("trials", trial_table(trials, self.objectives))
                    if results.best and not results.all_equal:
                        tracker.set_tag("best_trial", str(results.best[0].number))
                if self._wants_page:
                    self._finish_page(self._start_page(), timeout=300)
                self._log_files([self.folder / name for name in ("trials.csv", "optimization_results.yaml", "experiment/best.yaml")])
        except OSError as failure:
            log.warning("the sweep's report could not be written: %s", failure)
        finally:
            for tracker in self._trackers.values():
                if error is not None and isinstance(error, (UserError, RunError)):
                    tracker.set_tag("error", str(error))
                tracker.finish(status)


def _write_page(path: Path, storage: str, study_name: str, objectives: Sequence[str]) -> None:
    """Write the page in a fresh process: this one would keep the 4 seconds of imports and the memory."""
    from speechtrain.sweep.reports.page import write_page

    write_page(path, storage, study_name, objectives)


def settings_of(options: SweeperOptions, study_name: str, space: Mapping[str, object]) -> dict[str, object]:
    """Return the sweeper's options and the space as parameters of the run."""
    left_out = ("check", "_target_", "_recursive_")
    values = {key: value for key, value in vars(options).items() if key not in left_out}
    return {"sweeper": values | {"study_name": study_name}, "space": dict(space)}
