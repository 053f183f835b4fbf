"""The trials of a race between the best configurations: which there are, and how the next one is claimed.

They are trials of the study like others, with the attribute `speechtrain:finalist`, beside the slots of the search. Samplers and pruners
do not see them. `race.py` says what is to be trained next.
"""

from __future__ import annotations

import math
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from speechtrain.processes.identity import Process
from speechtrain.sweep.study.attributes import FAILURE, OWNER, RETRY_OF, TrialEntry, finish, was_cancelled
from speechtrain.sweep.study.internals import id_of
from speechtrain.sweep.study.ledger import Ledger
from speechtrain.sweep.study.race import Standing, standing_of
from speechtrain.sweep.study.race_plan import FINALIST, RACE, RacePlan
from speechtrain.sweep.study.results import meets_constraints
from speechtrain.sweep.study.storage import study_lock
from speechtrain.sweep.study.study import ClaimedTrial, Study


class FinalRace:
    """A race between the best configurations of a study, which other sweepers may run as well.

    Args:
        study: the study.
        plan: how the race is run.
    """

    def __init__(self, study: Study, plan: RacePlan) -> None:
        self._study = study
        self._plan = plan
        self._entrants: list[tuple[int, float]] = []
        self._counted = -1
        self._stored: dict[str, Any] = {}

    def standing(self, ledger: Ledger) -> Standing | None:
        """Return what the race has come to; None while trials of the search run, which may be among the best.

        Args:
            ledger: ledger of a study whose search is over.
        """
        if ledger.running:
            return None
        entrants = self._read_entrants()
        seeds = range(1, self._plan.max_seeds + 1)
        told = {(trial, seed): self._told(trial, seed) for trial, _ in entrants for seed in seeds}
        return standing_of(entrants, {key: value for key, value in told.items() if value is not None}, self._plan)

    def _read_entrants(self) -> list[tuple[int, float]]:
        """Return number and value of the best trials with different values of the parameters, the best first."""
        if len(self._study.finished) != self._counted:
            self._counted = len(self._study.finished)
            sign = 1.0 if self._plan.direction == "minimize" else -1.0
            found = [trial for trial in self._study.finished if _has_result(trial) and TrialEntry(trial).finalist is None]
            best: dict[str, tuple[int, float]] = {}
            for trial in sorted(found, key=lambda each: (sign * each.values[0], each.number)):
                if len(best) < self._plan.n:
                    best.setdefault(repr(sorted(trial.params.items())), (trial.number, float(trial.values[0])))
            self._entrants = list(best.values())
        return self._entrants

    def _key(self, trial: int, seed: int) -> tuple[int, str, int]:
        return trial, self._plan.seed_key, self._plan.first_seed + seed - 1

    def _told(self, trial: int, seed: int) -> float | str | None:
        """Return the value of a finalist with a seed, or why there is none; None: it is to be trained, or is being trained."""
        slot = self._study.finalist_runs.slot(key := self._key(trial, seed))
        if slot is None or not slot.attempts or not slot.is_done(self._study.retries):
            return None
        assert isinstance(slot.latest, TrialEntry)
        run = slot.latest.trial
        if _has_result(run):
            return float(run.values[0])
        how = {TrialState.COMPLETE: "has no valid result", TrialState.PRUNED: "was pruned"}.get(run.state, "failed")
        how = "was cancelled" if was_cancelled(run) else how
        return f"{how} with {key[1]}={key[2]}, as trial {run.number}"

    def claim(self, standing: Standing) -> ClaimedTrial | None:
        """Create the next trial of the race, running and this sweeper's alone, and return it; None: all that are wanted run already."""
        if not self._claimable(standing):
            return None
        study = self._study
        with study_lock(study.url, study.name):
            latest = self.standing(study.ledger())
            claimable = self._claimable(latest) if latest is not None else []
            if not claimable:
                return None
            key, failed = claimable[0]
            found = study.storage.get_trial(study.storage.get_trial_id_from_study_id_trial_number(study.id, key[0]))
            retry = {RETRY_OF: failed} if failed is not None else {}
            template = optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=found.params,
                distributions=found.distributions,
                system_attrs={
                    OWNER: Process.current().to_dict(),
                    FINALIST: {"of": key[0], "key": key[1], "seed": key[2]},
                    **retry,
                },
            )
            trial = study.storage.get_trial(study.storage.create_new_trial(study.id, template_trial=template))
            study.ledger()
            if not study.finalist_runs.holds(trial.number):  # another sweeper was first, where the storage has no locks
                study.storage.set_trial_system_attr(id_of(trial), FAILURE, {"surplus": True})
                finish(study.storage, id_of(trial), TrialState.FAIL)
                return None
        study.claimed_ids.add(id_of(trial))
        return ClaimedTrial(id_of(trial), trial.number, dict(trial.params), failed, finalist=key)

    def _claimable(self, standing: Standing) -> list[tuple[tuple[int, str, int], int | None]]:
        """Return what is wanted and runs nowhere, as (finalist, number of the failed trial that is to be retried)."""
        claimable: list[tuple[tuple[int, str, int], int | None]] = []
        for trial, seed in standing.wanted:
            slot = self._study.finalist_runs.slot(key := self._key(trial, seed))
            if slot is None or not slot.attempts:
                claimable.append((key, None))
            elif slot.wants_retry(self._study.retries):
                claimable.append((key, slot.latest.number))
        return claimable

    def store(self, standing: Standing) -> None:
        """Store with the study what the race has come to, for those who show it."""
        told = standing.to_dict()
        if told != self._stored:
            self._stored = told
            store_race(self._study, told)


def store_race(study: Study, told: dict[str, Any] | None) -> None:
    """Store what a race has come to, as `Standing.to_dict` has it; None: there is none."""
    if study.storage.get_study_user_attrs(study.id).get(RACE) != told:
        study.storage.set_study_user_attr(study.id, RACE, told)


def _has_result(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.COMPLETE and math.isfinite(trial.values[0]) and meets_constraints(trial)
