"""Shows a sweep to a person: one line for each trial, and at the end result files, among them the best config to run again.

What trackers get is in `recorder.py`.
"""

from __future__ import annotations

import csv
import io
import shlex
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from speechtrain.addresses import masked
from speechtrain.config.schemas.sweeps import SweeperOptions
from speechtrain.console import console, format_metric
from speechtrain.errors import RunError, counted
from speechtrain.files import write_text
from speechtrain.sweep.plan import UNLIMITED, SweepPlan
from speechtrain.sweep.reports.finalists import race_lines, results_of
from speechtrain.sweep.reports.status_page import duration
from speechtrain.sweep.space.compose import Composer
from speechtrain.sweep.space.space import Assignment
from speechtrain.sweep.study.attributes import RETRY_OF, TrialEntry, shown_params, was_cancelled, was_interrupted
from speechtrain.sweep.study.control import Signal
from speechtrain.sweep.study.cost import trial_table
from speechtrain.sweep.study.ledger import Ledger
from speechtrain.sweep.study.race import Standing
from speechtrain.sweep.study.race_plan import FIRST_LOOK
from speechtrain.sweep.study.results import RESULTS, Results, experiment_yaml, short_text
from speechtrain.sweep.study.study import Study

_CANCELLED, _INTERRUPTED = "CANCELLED", "INTERRUPTED"
_STYLES = {_CANCELLED: "yellow", _INTERRUPTED: "yellow", "COMPLETE": "green", "PRUNED": "dim", "FAIL": "red"}
_WORDS = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", _CANCELLED: "cancelled", _INTERRUPTED: "interrupted"}


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
        self._race: tuple[int, list[int]] | None = None
        self._bar: Progress | None = None

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

    def show(self, ledger: Ledger, *, running: Sequence[int] = ()) -> None:
        """Print a line for each trial that has ended since the last call, with the numbers of those that run."""
        for trial in self.study.finished[self._shown :]:
            self._shown += 1
            self._finished_here += 1
            self.results.add(trial)
            console.print(self._line(trial, ledger, running), markup=True)
        if self._bar is not None:
            done = f"{ledger.done}{self._of_all(' of ')} done"
            self._bar.update(self._bar.task_ids[0], description=f"{done}{_running(running) or ', starting'}")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Show on a terminal, below the lines, which trials run and for how long the sweep has; for jobs in other processes only."""
        if not console.is_terminal:
            yield
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, refresh_per_second=2) as self._bar:
            self._bar.add_task("starting")
            try:
                yield
            finally:
                self._bar.stop()
                self._bar = None

    def _line(self, trial: FrozenTrial, ledger: Ledger, running: Sequence[int]) -> str:
        state = _state_of(trial)
        values = "  ".join(self._values(trial)) or "-"
        paused_at = TrialEntry(trial).paused_at
        parts = [f"[bold]#{trial.number:<3d}[/] [{_STYLES[state]}]{'paused' if paused_at else _WORDS[state]:6s}[/]", values]
        if paused_at:
            parts[-1] = f"at epoch {paused_at}  {values}"
        if state == "COMPLETE" and (deviation := trial.user_attrs.get("deviation")) is not None and isinstance(deviation, float):
            parts[-1] += f" ± {self._value(0, deviation)}"
        best = self.results.best
        if (finalist := TrialEntry(trial).finalist) is not None:
            parts.append(f"finalist #{finalist[0]}")
        elif self.results.all_equal:
            parts.append("all equal so far")
        elif best and len(self.plan.directions) == 1:
            parts.append(f"best {self._value(0, best[0].values[0])} #{best[0].number}")
        elif best:
            parts.append(f"{len(best)} on the front")
        parts.append(escape(short_text(shown_params(trial))))
        if state == "FAIL":
            parts.append(f"[red]{escape(str(trial.user_attrs.get('reason', 'unknown')).splitlines()[0][:160])}[/]")
        if (earlier := trial.system_attrs.get(RETRY_OF)) is not None:
            parts.append(_relation(ledger, earlier))
        parts.append(f"[dim]{ledger.done}{self._of_all('/')}{_running(running)}{self._time_left(ledger)}[/]")
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

    def show_race(self, standing: Standing) -> None:
        """Print which trials the race of the finalists is between, and who is left after each of its comparisons."""
        racing = [each.trial for each in standing.racing]
        if self._race == (standing.seeds, sorted(racing)):
            return
        begins, same = self._race is None, self._race is not None and self._race[1] == sorted(racing)
        self._race = standing.seeds, sorted(racing)
        names = ", ".join(f"#{number}" for number in racing)
        if begins and standing.wanted:
            first, most = standing.plan.first_seed, standing.plan.max_seeds
            seeds = f"{standing.plan.seed_key}={first} to {first + most - 1}"
            console.print(f"race of the finalists: {names} with {seeds}, until one is significantly better", style="bold", markup=False)
        elif standing.wanted and standing.seeds >= FIRST_LOOK and not same:
            console.print(f"after {counted(standing.seeds, 'seed')} the race is between {names}", style="bold", markup=False)

    def show_pause(self, pause: Signal | None) -> None:
        """Print that no trial is started until the study is resumed, or that it was; once each."""
        if pause is not None and self._pause is None:
            how = f"`python -m speechtrain.sweep resume {self.study.name}` goes on"
            console.print(f"paused from {pause.host}: no trial is started; {how}", style="yellow", markup=False)
        elif pause is None and self._pause is not None:
            console.print("resumed", style="yellow")
        self._pause = pause

    def interrupted(self, standing: Standing | None = None) -> None:
        """Write and print the results so far, and print that the interrupted trials are queued again, and how to continue."""
        self.show(self.study.ledger())
        trials = self.study.trials()
        self._write_table(trials)
        if best := self._best(trials, standing):
            self._write_results(best, standing)
            for line in self._of_best(best, standing):
                console.print(line, markup=False)
            self._write_best_config(best[0], standing, named=False)
        console.print("interrupted; running trials are queued again, and the same command continues the study", style="yellow")

    # --- at the end -------------------------------------------------------------------------------------------------------------------

    def end(self, reason: str | None = None, standing: Standing | None = None) -> float | None:
        """Write and print the results, and return the best objective; None if there is none yet and trials are left.

        Args:
            reason: why the command ends before all trials were run; None if it does not.
            standing: what the race of the finalists has come to, whose winner is the best; None: there was none.

        Raises:
            RunError: no trial was completed.
        """
        ledger = self.study.ledger()
        self.show(ledger)
        trials = self.study.trials()
        best = self._best(trials, standing)
        self._write_table(trials)
        states = [_state_of(slot.latest.trial) for slot in ledger.slots if isinstance(slot.latest, TrialEntry)]
        counts = {word: states.count(state) for state, word in _WORDS.items()}
        if paused := len(ledger.paused):
            counts = {**counts, "pruned": counts["pruned"] - paused, "paused": paused}
        console.print(f"\n{', '.join(f'{count} {word}' for word, count in counts.items() if count)}", markup=False)
        if reason is not None:
            console.print(f"stopped: {reason}", style="yellow", markup=False)
        if not best:
            if ledger.done < self.plan.n_trials or ledger.to_continue is not None:
                return None
            raise self._without_result(trials)
        self._write_results(best, standing)
        for line in [*self._of_race(standing, reason), *self._of_best(best, standing), *self._by_seed(trials)]:
            console.print(line, markup=False)
        self._write_best_config(best[0], standing, named=not self.results.all_equal)
        if reason is not None and not self._finished_here:
            console.print("nothing was done; a higher goal or budget in hydra.sweeper.stop_when goes on with the study")
        elif ledger.is_complete and not self._finished_here:
            console.print("nothing was left to do; for more give a higher hydra.sweeper.n_trials or another hydra.sweeper.study_name")
        return self.results.best_value

    def _best(self, trials: Sequence[FrozenTrial], standing: Standing | None) -> list[FrozenTrial]:
        """Return the best trials, with the winner of the race of the finalists as the best, if there is one."""
        if standing is not None and (winner := standing.winner) is not None:
            self.results.name_winner(next(trial for trial in trials if trial.number == winner.trial), winner.mean)
        return self.results.best

    def _without_result(self, trials: Sequence[FrozenTrial]) -> RunError:
        reasons = [str(trial.user_attrs.get("reason")) for trial in trials if trial.state is TrialState.FAIL]
        what = f"the last reason: {reasons[-1]}" if reasons else "all were pruned, or violated a constraint"
        return RunError(f"no trial of the study '{self.study.name}' finished with a result\n    {what}")

    def _of_race(self, standing: Standing | None, reason: str | None) -> Iterator[str]:
        """Yield the lines on the race of the finalists, or that there was none although it is asked for."""
        if standing is not None:
            yield from race_lines(standing.to_dict(), next(iter(self.plan.objectives), ""), reason)
        elif self.plan.race is not None:
            yield "race of the finalists: none, for the search was ended before it was through"

    def _of_best(self, best: Sequence[FrozenTrial], standing: Standing | None) -> Iterator[str]:
        """Yield a line for each of the best trials, or one that says that all are equal."""
        if self.results.all_equal:
            yield f"all equal  {self._result_of(best[0], standing)}: none is the best"
            return
        for trial in best:
            yield f"best  #{trial.number}  {self._result_of(trial, standing)}  {short_text(trial.params)}"

    def _result_of(self, trial: FrozenTrial, standing: Standing | None) -> str:
        """Return the values of a best trial with their names: of the winner of a race its mean over further seeds."""
        names = self.plan.names("result")
        winner = standing.winner if standing is not None else None
        if winner is None or self.results.best_value is None:
            return ", ".join(f"{name} {value}" for name, value in zip(names, self._values(trial), strict=False))
        return f"{names[0]} {self._value(0, self.results.best_value)} over {counted(len(winner.values), 'seed')}"

    def _write_results(self, best: Sequence[FrozenTrial], standing: Standing | None) -> None:
        results: dict[str, Any] = {"name": "optuna", "study_name": self.study.name}
        if len(self.plan.directions) == 1:
            results |= {"best_params": dict(best[0].params), "best_value": self.results.best_value}
        else:
            results["solutions"] = [{"params": dict(trial.params), "values": list(trial.values)} for trial in best]
        results["best_trial"] = best[0].number
        results["best_overrides"] = self._overrides(best[0])
        if standing is not None:
            results["race"] = results_of(standing.to_dict(), standing.plan.significance)
        write_text(self.folder / RESULTS, yaml.safe_dump(results, sort_keys=False, allow_unicode=True))

    def _overrides(self, trial: FrozenTrial) -> list[str]:
        assignment: Assignment = dict(trial.params)
        return self.plan.space.overrides(assignment)

    def _write_table(self, trials: Sequence[FrozenTrial]) -> None:
        names = [parameter.name for parameter in self.plan.space.all_parameters()]
        table = trial_table(trials, self.plan.names("value"), names)
        table["state"] = [state.upper() for state in table["state"]]
        del table["run"]
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
        write_text(self.folder / "trials.csv", buffer.getvalue())

    def _by_seed(self, trials: Sequence[FrozenTrial]) -> list[str]:
        """Return a line with mean and deviation for each config that was trained with several seeds."""
        if "seed" not in {parameter.path for parameter in self.plan.space.all_parameters()} or len(self.plan.directions) > 1:
            return []
        groups: dict[str, list[float]] = {}
        for trial in trials:
            if trial.state is TrialState.COMPLETE and trial.values and TrialEntry(trial).finalist is None:
                others = {name: value for name, value in trial.params.items() if name != "seed"}
                groups.setdefault(short_text(others), []).append(trial.values[0])
        metric = self.plan.names("result")[0]
        lines = []
        for name, values in sorted(groups.items(), key=lambda item: statistics.fmean(item[1])):
            if len(values) > 1:
                mean, deviation = (self._value(0, number) for number in (statistics.fmean(values), statistics.stdev(values)))
                lines.append(f"{metric} {mean} ± {deviation} over {len(values)} seeds  {name}".rstrip())
        return lines

    def _write_best_config(self, trial: FrozenTrial, standing: Standing | None, *, named: bool) -> None:
        """Write the best config, the first of equal ones, as an experiment file; print the command that runs it if it is to be `named`."""
        if self.options.check is None:  # another program, whose config has no experiments
            return
        cfg = self.composer.compose(self._overrides(trial))
        path = self.folder / "experiment" / "best.yaml"
        folder = self.folder if self.folder.is_absolute() else Path(shlex.quote(str(self.folder)))
        command = f"python -m speechtrain --config-dir {folder} experiment=best"
        values = self._result_of(trial, standing)
        head = f"# @package _global_\n# Trial {trial.number} of {self.study.name}: {values}  {short_text(trial.params)}\n#\n#   {command}\n"
        write_text(path, head + experiment_yaml(cfg))
        if named:
            console.print(f"      {path}\n      {command}", style="bold", markup=False)


def _running(numbers: Sequence[int]) -> str:
    """Return which trials run, in words; nothing if none does."""
    named = " ".join(f"#{number}" for number in numbers[:_MOST_NAMED])
    more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
    return f", {named}{more} running" if numbers else ""


_MOST_NAMED = 4


def _state_of(trial: FrozenTrial) -> str:
    return _CANCELLED if was_cancelled(trial) else _INTERRUPTED if was_interrupted(trial) else trial.state.name


def _relation(ledger: Ledger, earlier: int) -> str:
    """Return what a trial is to the earlier one that it goes on from."""
    slot = ledger.slot_of(earlier)
    attempt = next((each for each in slot.attempts if each.number == earlier), None) if slot is not None else None
    return f"continues #{earlier} from epoch {attempt.paused_at}" if attempt is not None and attempt.paused_at else f"retry of #{earlier}"
