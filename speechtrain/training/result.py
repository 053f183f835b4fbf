"""The result of a training run, as `speechtrain.train` returns it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechtrain.tracking.run_folder import read_run_file
from speechtrain.training.history import HISTORY, read_history

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


def finished_result(folder: Path) -> Result | None:
    """Return the result of a run that has finished, as its folder holds it: without samples, checkpoint and model; None: it has not."""
    stored = read_run_file(folder)
    if stored.get("status") != "FINISHED" or stored.get("objective") is None or "metrics" not in stored:
        return None
    metrics = {str(name): float(value) for name, value in stored["metrics"].items()}
    history = read_history(folder / HISTORY)
    return Result(metrics, float(stored["objective"]), folder, None, history, [], dict(stored.get("run_ids", {})))
