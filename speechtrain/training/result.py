"""What a run leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechtrain.tasks.base import Sample


@dataclass
class Result:
    """What a run leaves.

    Attributes:
        metrics: the last value of each metric; `test/...` of the chosen checkpoint.
        objective: value of `objective.metric` at its best epoch (None if it was not measured).
        folder: of the run.
        checkpoint: that the test measured.
        history: metrics of each epoch.
        samples: references and hypotheses, of the test if there is one, else of the validation.
        run_ids: of the trackers that give ids, by name.
        model: in the weights of `checkpoint`.
    """

    metrics: dict[str, float]
    objective: float | None
    folder: Path
    checkpoint: Path | None
    history: list[dict[str, float]]
    samples: list[Sample]
    run_ids: dict[str, str]
    model: Any = field(repr=False, default=None)
