"""The result of a training run, as `speechtrain.train` returns it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechtrain.tasks.base import Sample


@dataclass
class Result:
    """What a training run returns.

    Attributes:
        metrics: the last value of each metric; `test/...` of the chosen checkpoint.
        objective: value of `objective.metric` at its best epoch; None: it was not measured.
        folder: the folder of the run.
        checkpoint: the file that was tested; None: none was written.
        history: metrics of each epoch.
        samples: references and hypotheses of the test data if there are any, else of the validation data.
        run_ids: ids of the run in the trackers, by tracker.
        model: the trained model, with the weights of `checkpoint`.
    """

    metrics: dict[str, float]
    objective: float | None
    folder: Path
    checkpoint: Path | None
    history: list[dict[str, float]]
    samples: list[Sample]
    run_ids: dict[str, str]
    model: Any = field(repr=False, default=None)
