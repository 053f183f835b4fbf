"""Shows a sweep to a person: one line for each trial, and at the end result files, among them the best config to run again.

What trackers get is in `recorder.py`.
"""

from __future__ import annotations

import csv
import io
import shlex
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape

from speechtrain.addresses import masked
from speechtrain.config.schemas.sweeps import SweeperOptions
from speechtrain.console import console, format_metric
from speechtrain.errors import RunError
from speechtrain.files import write_text
from speechtrain.sweep.plan import UNLIMITED, SweepPlan
from speechtrain.sweep.reports.status_page import duration
from speechtrain.sweep.space.compose import Composer
from speechtrain.sweep.space.space import Assignment
from speechtrain.sweep.study.attributes import RETRY_OF, TrialEntry, was_cancelled
from speechtrain.sweep.study.control import Signal
from speechtrain.sweep.study.cost import reasons_of
from speechtrain.sweep.study.ledger import Ledger
from speechtrain.sweep.study.results import RESULTS, Results, experiment_yaml, short_text
from speechtrain.sweep.study.study import Study

_CANCELLED = "CANCELLED"
_STYLES = {_CANCELLED: "yellow", "COMPLETE": "green", "PRUNED": "dim", "FAIL": "red"}
_WORDS = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", _CANCELLED: "cancelled"}


class Reporter:
    """Prints lines while a sweep runs, and writes files at its end.

    Args:
        study: study of the sweep.
        plan: plan of the sweep.
        composer: composes the best config.
        workers: jobs that may run at a time.
        options: `hydra.sweeper`.

    Attributes:
        results: the best of the trials that were shown.
    """

    def __init__(self, study: Study, plan: SweepPlan, composer: Composer, *, workers: int, options: SweeperOptions) -> None:
        self.study = study
        self.plan = plan
        self.composer = composer
        self.folder = plan.folder
        self.workers = workers
        self.options = options
        self.results = Results(plan.directions)
        self._shown = 0
        self._started = time.monotonic()
        self._finished_here = 0
        self._pause: Signal | None = None

    # --- while it runs ----------------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Print the study's name and what earlier commands have done of it."""
        goal = ", ".join(f"{d} {m}" for m, d in zip(self.plan.names("the result"), self.plan.directions, strict=True))
        count = self.plan.n_trials
        trials = "as many trials as hydra.sweeper.stop_when lets begin" if count == UNLIMITED else f"{count} trials"
        kind = f"a grid of {count}, each point once" if self.plan.grid else trials
        console.print(f"study {self.study.name}: {kind}, {goal}, {self.workers} at a time", markup=False)
        console.print(f"      {masked(self.study.url)}", style="dim", markup=False)
        if self.plan.warm.told:
            console.print(f"      {self.plan.warm.told}", markup=False)
        done = self.study.ledger().done
        self._shown = len(self.study.finished)
        for trial in self.study.finished:
            self.results.add(trial)
        if self._shown:
            console.print(f"      {done}{self._of_all(' of ')} were done before; continuing", markup=False)

    def show(self, ledger: Ledger, *, busy: int) -> None:
        """Print a line for each trial that has ended since the last call."""
        for trial in self.study.finished[self._shown :]:
            self._shown += 1
            self._finished_here += 1
            self.results.add(trial)
            console.print(self._line(trial, ledger, busy), markup=True)

    def _line(self, trial: FrozenTrial, ledger: Ledger, busy: int) -> str:
        state = _state_of(trial)
        values = "  ".join(self._values(trial)) or "-"
        paused_at = TrialEntry(trial).paused_at
        parts = [f"[bold]#{trial.number:<3d}[/] [{_STYLES[state]}]{'paused' if paused_at else _WORDS[state]:6s}[/]", values]
        if paused_at:
            parts[-1] = f"at epoch {paused_at}  {values}"
        if state == "COMPLETE" and (deviation := trial.user_attrs.get("deviation")) is not None and isinstance(deviation, float):
            parts[-1] += f" ± {self._value(0, deviation)}"
        best = self.results.best
        if self.results.all_equal:
            parts.append("all equal so far")
        elif best and len(self.plan.directions) == 1:
            parts.append(f"best {self._value(0, best[0].values[0])} #{best[0].number}")
        elif best:
            parts.append(f"{len(best)} on the front")
        parts.append(escape(short_text(trial.params)))
        if state == "FAIL":
            parts.append(f"[red]{escape(str(trial.user_attrs.get('reason', 'unknown')).splitlines()[0][:160])}[/]")
        if (earlier := trial.system_attrs.get(RETRY_OF)) is not None:
            parts.append(_relation(ledger, earlier))
        parts.append(f"[dim]{ledger.done}{self._of_all('/')}, {busy}/{self.workers} busy{self._time_left(ledger)}[/]")
        return "  ".join(parts)

    def _values(self, trial: FrozenTrial) -> list[str]:
        """Return a trial's values as text; what a pruned one reported last may be another metric."""
        if trial.state is TrialState.PRUNED and self.options.report is not None:
            return [f"{self.options.report} {format_metric(self.options.report, value)}" for value in trial.values or []]
        return [self._value(index, value) for index, value in enumerate(trial.values or [])]

    def _value(self, index: int, value: float) -> str:
        """Return a value of an objective as text, rates as per cent."""
        metric = self.plan.objectives[index] if self.plan.objectives else ""
        return format_metric(metric, value)

    def _of_all(self, word: str) -> str:
        return "" if self.plan.n_trials == UNLIMITED else f"{word}{self.plan.n_trials}"

    def _time_left(self, ledger: Ledger) -> str:
        left = self.plan.n_trials - ledger.done
        if not self._finished_here or not left or self.plan.n_trials == UNLIMITED:
            return ""
        seconds = (time.monotonic() - self._started) / self._finished_here * left
        return f", {duration(seconds)} left"

    def show_pause(self, pause: Signal | None) -> None:
        """Print that no trial is started until the study is resumed, or that it was; once each."""
        if pause is not None and self._pause is None:
            how = f"`speechtrain sweep resume {self.study.name}` goes on"
            console.print(f"paused from {pause.host}: no trial is started; {how}", style="yellow", markup=False)
        elif pause is None and self._pause is not None:
            console.print("resumed", style="yellow")
        self._pause = pause

    def interrupted(self) -> None:
        """Print that the interrupted trials are queued again, and how to continue."""
        console.print("interrupted; running trials are queued again, and the same command continues the study", style="yellow")

    # --- at the end -------------------------------------------------------------------------------------------------------------------

    def end(self, reason: str | None = None) -> float | None:
        """Write and print the results, and return the best objective; None if there is none yet and trials are left.

        Args:
            reason: why the command ends before all trials were run; None if it does not.

        Raises:
            RunError: no trial was completed.
        """
        ledger = self.study.ledger()
        self.show(ledger, busy=0)
        trials = self.study.trials()
        best = self.results.best
        self._write_table(trials)
        states = [_state_of(slot.latest.trial) for slot in ledger.slots if isinstance(slot.latest, TrialEntry)]
        counts = {word: states.count(state) for state, word in _WORDS.items()}
        if paused := len(ledger.paused):
            counts = {**counts, "pruned": counts["pruned"] - paused, "paused": paused}
        console.print(f"\n{', '.join(f'{count} {word}' for word, count in counts.items() if count)}", markup=False)
        if reason is not None:
            console.print(f"stopped: {reason}", style="yellow", markup=False)
        if not best:
            if ledger.done < len(ledger.slots) or ledger.to_continue is not None:
                return None
            reasons = [str(trial.user_attrs.get("reason")) for trial in trials if trial.state is TrialState.FAIL]
            what = f"the last reason: {reasons[-1]}" if reasons else "all were pruned, or violated a constraint"
            raise RunError(f"no trial of the study '{self.study.name}' finished with a result\n    {what}")
        self._write_results(best)
        equal = self.results.all_equal
        for trial in best[:1] if equal else best:
            values = ", ".join(f"{metric} {value}" for metric, value in zip(self.plan.names("result"), self._values(trial), strict=False))
            which = f"all equal  {values}: none is the best" if equal else f"best  #{trial.number}  {values}  {short_text(trial.params)}"
            console.print(which, markup=False)
        for line in self._by_seed(trials):
            console.print(line, markup=False)
        self._write_best_config(best[0], named=not equal)
        if reason is not None and not self._finished_here:
            console.print("nothing was done; a higher goal or budget in hydra.sweeper.stop_when goes on with the study")
        elif ledger.is_complete and not self._finished_here:
            console.print("nothing was left to do; for more give a higher hydra.sweeper.n_trials or another hydra.sweeper.study_name")
        return float(best[0].values[0])

    def _write_results(self, best: Sequence[FrozenTrial]) -> None:
        results: dict[str, Any] = {"name": "optuna", "study_name": self.study.name}
        if len(self.plan.directions) == 1:
            results |= {"best_params": dict(best[0].params), "best_value": best[0].values[0]}
        else:
            results["solutions"] = [{"params": dict(trial.params), "values": list(trial.values)} for trial in best]
        results["best_trial"] = best[0].number
        results["best_overrides"] = self._overrides(best[0])
        write_text(self.folder / RESULTS, yaml.safe_dump(results, sort_keys=False, allow_unicode=True))

    def _overrides(self, trial: FrozenTrial) -> list[str]:
        assignment: Assignment = dict(trial.params)
        return self.plan.space.overrides(assignment)

    def _write_table(self, trials: Sequence[FrozenTrial]) -> None:
        names = [parameter.name for parameter in self.plan.space.all_parameters()]
        metrics = self.plan.names("value")
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(["trial", "state", *metrics, "seconds", *names, "reason"])
        for trial, reason in zip(trials, reasons_of(trials), strict=True):
            values = list(trial.values or [None] * len(metrics))
            seconds = trial.duration.total_seconds() if trial.duration is not None else None
            params = [trial.params.get(name) for name in names]
            writer.writerow([trial.number, trial.state.name, *values, seconds, *params, reason or ""])
        write_text(self.folder / "trials.csv", buffer.getvalue())

    def _by_seed(self, trials: Sequence[FrozenTrial]) -> list[str]:
        """Return a line with mean and deviation for each config that was trained with several seeds."""
        if "seed" not in {parameter.path for parameter in self.plan.space.all_parameters()} or len(self.plan.directions) > 1:
            return []
        groups: dict[str, list[float]] = {}
        for trial in trials:
            if trial.state is TrialState.COMPLETE and trial.values:
                others = {name: value for name, value in trial.params.items() if name != "seed"}
                groups.setdefault(short_text(others), []).append(trial.values[0])
        metric = self.plan.names("result")[0]
        lines = []
        for name, values in sorted(groups.items(), key=lambda item: statistics.fmean(item[1])):
            if len(values) > 1:
                mean, deviation = (self._value(0, number) for number in (statistics.fmean(values), statistics.stdev(values)))
                lines.append(f"{metric} {mean} ± {deviation} over {len(values)} seeds  {name}".rstrip())
        return lines

    def _write_best_config(self, trial: FrozenTrial, *, named: bool) -> None:
        """Write the best config, the first of equal ones, as an experiment file; print the command that runs it if it is to be `named`."""
        if self.options.check is None:  # another program, whose config has no experiments
            return
        cfg = self.composer.compose(self._overrides(trial))
        path = self.folder / "experiment" / "best.yaml"
        folder = self.folder if self.folder.is_absolute() else Path(shlex.quote(str(self.folder)))
        command = f"python -m speechtrain --config-dir {folder} experiment=best"
        values = ", ".join(self._values(trial))
        head = f"# @package _global_\n# Trial {trial.number} of {self.study.name}: {values}  {short_text(trial.params)}\n#\n#   {command}\n"
        write_text(path, head + experiment_yaml(cfg))
        if named:
            console.print(f"      {path}\n      {command}", style="bold", markup=False)


def _state_of(trial: FrozenTrial) -> str:
    return _CANCELLED if was_cancelled(trial) else trial.state.name


def _relation(ledger: Ledger, earlier: int) -> str:
    """Return what a trial is to the earlier one that it goes on from."""
    slot = ledger.slot_of(earlier)
    attempt = next((each for each in slot.attempts if each.number == earlier), None) if slot is not None else None
    return f"continues #{earlier} from epoch {attempt.paused_at}" if attempt is not None and attempt.paused_at else f"retry of #{earlier}"
