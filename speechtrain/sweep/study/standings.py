"""What the slots of a study have reported at each rung, and where they pause: kept up to date slot by slot, without a storage.

A *rung* is a number of epochs after which trials are compared; `promotion.py` has the rules that say which ones go on from there.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechtrain.config.targets import Direction

if TYPE_CHECKING:
    from speechtrain.sweep.study.promotion import PromotionRule


class Rung:
    """The slots that have come to a number of epochs, best first.

    Attributes:
        epochs: the number of epochs.
        reached: (cost, slot) of all that have come as far, by their metric there; less is better, of equals the older slot.
        paused: those of them that have paused here and were not continued.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.reached: list[tuple[float, int]] = []
        self.paused: list[tuple[float, int]] = []
        self._costs: dict[int, float] = {}

    def __contains__(self, slot: int) -> bool:
        return slot in self._costs

    def add(self, slot: int, cost: float) -> None:
        """Take in a slot that has come here; one that is known stays where it is."""
        if slot not in self._costs:
            self._costs[slot] = cost
            insort(self.reached, (cost, slot))

    def pause(self, slot: int) -> None:
        """Note that a slot has paused here."""
        self.add(slot, math.inf)
        insort(self.paused, (self._costs[slot], slot))

    def leave(self, slot: int) -> None:
        """Note that a slot which had paused here does not any more."""
        self.paused.remove((self._costs[slot], slot))

    def place_of(self, slot: int) -> int:
        """Return how many of those that have come here are better than a slot."""
        return bisect_left(self.reached, (self._costs[slot], slot))

    @property
    def best_paused(self) -> int | None:
        """Return the best slot that has paused here; None: there is none."""
        return self.paused[0][1] if self.paused else None


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        all_begun: whether each slot of the study has a trial.
        open_slots: the slots that run, wait or are to be retried.
        complete: the slots whose trials have come to their end.
    """

    all_begun: bool
    open_slots: Collection[int]
    complete: Collection[int] = ()

    @property
    def has_result(self) -> bool:
        """Return whether a trial has come to its end."""
        return bool(self.complete)


class Standings:
    """What each slot of a study has reported, and where it pauses; kept up to date slot by slot.

    Args:
        rule: says at which numbers of epochs slots are compared.
        direction: direction in which the reported metric is better.

    Attributes:
        rungs: the rungs that a slot has come to, by their epochs.
        curves: what each slot has reported, by steps, which count epochs from 0.
        features: parameters of each slot as numbers (`curve_model.features_of`), for a rule that uses them.
    """

    def __init__(self, rule: PromotionRule, direction: Direction) -> None:
        self.rule = rule
        self.direction = direction
        self.rungs: dict[int, Rung] = {}
        self.curves: dict[int, Mapping[int, float]] = {}
        self.features: dict[int, Mapping[str, float]] = {}
        self._last_steps: dict[int, int] = {}
        self._pauses: dict[int, Rung | None] = {}

    def put(self, slot: int, values: Mapping[int, float], paused_at: int | None) -> None:
        """Take in what a slot has reported so far.

        Args:
            slot: rank of the slot.
            values: the metric by step, as one of its attempts has reported it.
            paused_at: epochs after which it has paused; None: it has not, or was continued since.
        """
        last = self._last_steps.get(slot, -1)
        for step in sorted(step for step in values if step > last):
            epochs = self.rule.rung_at(step + 1)
            if epochs is not None:
                self._rung(epochs).add(slot, self._cost(values[step]))
            self._last_steps[slot] = step
        if values:
            self.curves[slot] = values
        at = self.rule.rung_at(paused_at) if paused_at is not None else None
        rung = self._rung(at) if at is not None else None
        before = self._pauses.get(slot)
        if before is rung:
            return
        if before is not None:
            before.leave(slot)
        if rung is not None:
            rung.pause(slot)
        self._pauses[slot] = rung

    def costs(self, slot: int) -> dict[int, float]:
        """Return what a slot has reported, by the epochs it had then; less is better, and infinite where it was not a number."""
        return {step + 1: self._cost(value) for step, value in self.curves[slot].items()}

    def _rung(self, epochs: int) -> Rung:
        return self.rungs.setdefault(epochs, Rung(epochs))

    def _cost(self, value: float) -> float:
        if math.isnan(value):
            return math.inf
        return value if self.direction == "minimize" else -value

    @property
    def highest_first(self) -> list[Rung]:
        """Return the rungs, those of most epochs first."""
        return [self.rungs[epochs] for epochs in sorted(self.rungs, reverse=True)]

    def goes_on(self, slot: int, epochs: int) -> bool:
        """Return whether a slot that has just reported the metric after so many epochs goes on at once."""
        at = self.rule.rung_at(epochs)
        return at is None or self.rule.goes_on(self.rungs[at], slot)
