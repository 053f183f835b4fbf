"""Which trials pause, and which paused ones go on: rules that depend on nothing but what the trials of a study have reported.

Trials are compared at *rungs*, numbers of epochs. At a rung, a trial goes on at once or pauses: its checkpoint stays and its worker is
free. `next_slot` says which paused trial is continued next. `ledger.py` keeps the `Standings` that a rule is given, `study.py` starts what
it chooses, and the job asks `goes_on` (`trial/handle.py`).
"""

from __future__ import annotations

from abc import abstractmethod

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from speechtrain.sweep.study.standings import Progress, Rung, Standings


class PromotionRule(optuna.pruners.BasePruner):
    """Decides at each rung which trials pause, and which paused trial is continued next.

    It is a pruner of Optuna's as well: where nobody continues trials, one that would pause is pruned.

    Attributes:
        uses_features: whether `Standings.features` is to be kept for it.
    """

    uses_features = False

    @abstractmethod
    def rung_at(self, epochs: int) -> int | None:
        """Return the highest rung that a trial of so many epochs has come to; None: it has come to none."""

    @abstractmethod
    def goes_on(self, rung: Rung, slot: int) -> bool:
        """Return whether a slot that has just come to a rung goes on at once."""

    @abstractmethod
    def promotable(self, standings: Standings, progress: Progress) -> int | None:
        """Return the slot whose paused trial is to be continued before any other trial is begun; None: there is none now."""

    def is_out(self, rung: Rung, slot: int, n_slots: int) -> bool:  # noqa: ARG002
        """Return whether a slot that has paused at a rung is not promotable any more, however bad the others of n_slots turn out.

        A rule that cannot say it returns False.
        """
        return False

    def next_slot(self, standings: Standings, progress: Progress) -> int | None:
        """Return the slot whose paused trial is to be continued now; None: there is none.

        Where nothing else is left to do and no trial has come to its end, that is the best of the highest rung.
        """
        slot = self.promotable(standings, progress)
        if slot is None and progress.all_begun and not progress.open_slots and not progress.has_result:
            paused = (rung.best_paused for rung in standings.highest_first)
            slot = next((best for best in paused if best is not None), None)
        return slot

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether a trial would pause after what it reported last."""
        step = trial.last_step
        if step is None or (rung := self.rung_at(step + 1)) is None:
            return False
        if any(self.rung_at(earlier + 1) == rung for earlier in trial.intermediate_values if earlier < step):
            return False  # it was compared there before
        standings = Standings(self, "minimize" if study.direction is StudyDirection.MINIMIZE else "maximize")
        for other in study.get_trials(deepcopy=False):
            standings.put(other.number, other.intermediate_values, None)
        return not standings.goes_on(trial.number, step + 1)


class SuccessiveHalving(PromotionRule):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934): of those that have come to a rung, the best share goes on.

    Args:
        min_resource: epochs of the first rung; each of the others has `reduction_factor` times those of the one before.
        reduction_factor: one of so many trials goes on.

    Raises:
        ValueError: one of them is too small.
    """

    def __init__(self, min_resource: int = 2, reduction_factor: int = 3) -> None:
        check_whole("min_resource", min_resource, least=1)
        check_whole("reduction_factor", reduction_factor, least=2)
        self._min_resource = min_resource
        self._reduction_factor = reduction_factor

    def rung_at(self, epochs: int) -> int | None:
        """Return the highest rung that a trial of so many epochs has come to; None: it has come to none."""
        if epochs < self._min_resource:
            return None
        rung = self._min_resource
        while rung * self._reduction_factor <= epochs:
            rung *= self._reduction_factor
        return rung

    def goes_on(self, rung: Rung, slot: int) -> bool:
        """Return whether a slot is in the best share of those that have come to a rung so far."""
        return rung.place_of(slot) < len(rung.reached) // self._reduction_factor

    def is_out(self, rung: Rung, slot: int, n_slots: int) -> bool:
        """Return whether so many are better that the slot is not in the best share of all slots: there will not be fewer of them."""
        return rung.place_of(slot) >= n_slots // self._reduction_factor

    def promotable(self, standings: Standings, progress: Progress) -> int | None:  # noqa: ARG002
        """Return the best paused slot of the highest rung where it is in the best share; None: it is at no rung."""
        best = ((rung, rung.best_paused) for rung in standings.highest_first)
        return next((slot for rung, slot in best if slot is not None and self.goes_on(rung, slot)), None)


class KeepBest(PromotionRule):
    """Pauses every trial once and continues the best when all have come as far (Egele et al. 2023, arXiv 2307.15422, with one epoch).

    Args:
        epochs: epochs after which trials pause.
        keep: trials that are continued, to their end.

    Raises:
        ValueError: one of them is too small.
    """

    def __init__(self, epochs: int = 1, keep: int = 3) -> None:
        check_whole("epochs", epochs, least=1)
        check_whole("keep", keep, least=1)
        self._epochs = epochs
        self._keep = keep

    def rung_at(self, epochs: int) -> int | None:
        """Return the one rung if a trial of so many epochs has come to it."""
        return self._epochs if epochs >= self._epochs else None

    def goes_on(self, rung: Rung, slot: int) -> bool:  # noqa: ARG002
        """Return False: which are the best is known when all have come to the rung."""
        return False

    def is_out(self, rung: Rung, slot: int, n_slots: int) -> bool:  # noqa: ARG002
        """Return whether as many are better as are continued."""
        return rung.place_of(slot) >= self._keep

    def promotable(self, standings: Standings, progress: Progress) -> int | None:
        """Return the best paused one of the `keep` best slots, once every slot has come to the rung or failed before it."""
        rung = standings.rungs.get(self._epochs)
        if rung is None or not progress.all_begun or any(slot not in rung for slot in progress.open_slots):
            return None
        paused = {slot for _, slot in rung.paused}
        return next((slot for _, slot in rung.reached[: self._keep] if slot in paused), None)


def check_whole(name: str, value: object, *, least: int) -> None:
    """Raise ValueError if an argument is not a whole number of at least so much."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, received {value!r}")
