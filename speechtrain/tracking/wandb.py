"""Weights & Biases beside MLflow; offline, or without the package, training goes on all the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechtrain.tracking.base import DatasetInfo, RunInfo, Status, Tracker, flat

log = logging.getLogger(__name__)


class WandbTracker(Tracker):
    """Tracks one run in a project of Weights & Biases.

    Args:
        project: name of the project.
        entity: user or team it belongs to; None takes the user who is logged in.
        mode: `online`, `offline`, or `auto`, which is online where somebody is logged in.
        log_checkpoint: whether the best checkpoint is kept as an artifact.
    """

    def __init__(self, project: str, entity: str | None = None, mode: str = "auto", log_checkpoint: bool = False) -> None:
        self.project = project
        self.entity = entity
        self.mode = mode
        self.keeps_checkpoint = log_checkpoint
        self._run: Any = None
        self._folder = Path()
        self._offline = False

    def start(self, info: RunInfo) -> None:
        """Open the run; what cannot go online is kept in the run's folder."""
        self._folder = info.folder
        try:
            import wandb
        except ImportError:
            log.warning("Weights & Biases is not installed, so nothing is written for it\n    -> pip install 'speechtrain[wandb]'")
            return
        mode = self.mode
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_API_KEY") or wandb.api.api_key else "offline"
        for attempt in dict.fromkeys((mode, "offline")):
            try:
                self._run = self._open(wandb, info, attempt)
            except Exception as error:
                log.warning("Weights & Biases cannot be reached (%s); the run is kept offline", (str(error) or type(error).__name__)[:200])
            else:
                self._offline = attempt == "offline"
                break

    def _open(self, wandb: Any, info: RunInfo, mode: str) -> Any:
        settings = wandb.Settings(silent=True, console="off", init_timeout=30)
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=info.name,
            id=info.uid[:32],
            resume="allow" if mode == "online" else None,
            dir=str(info.folder),
            config={**flat(info.config), **{f"tag.{name}": value for name, value in info.tags.items()}},
            mode=mode,
            settings=settings,
            reinit="create_new",
        )
        run.define_metric("*", step_metric="epoch")
        run.define_metric("step/*", step_metric="batch")
        return run

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of an epoch, or of a step."""
        axis = "batch" if all(name.startswith("step/") for name in metrics) else "epoch"
        self._try(lambda run: run.log({**metrics, axis: step}))

    def log_dataset(self, info: DatasetInfo) -> None:
        """Log the facts of a split in the summary."""
        facts = {"fingerprint": info.fingerprint, "source": info.source, **info.facts}
        self._try(lambda run: run.summary.update({f"data.{info.split}.{name}": value for name, value in facts.items()}))

    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Log a table of Weights & Biases."""

        def send(run: Any) -> None:
            import wandb

            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            run.log({name: wandb.Table(columns=list(columns), data=rows)})

        self._try(send)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file as an artifact."""
        self._send_artifact(path, f"{folder}-{path.stem}".strip("-"), "report")

    def log_checkpoint(self, path: Path) -> None:
        """Log the checkpoint as an artifact, if `log_checkpoint` is set."""
        if self.keeps_checkpoint:
            self._send_artifact(path, "checkpoint", "model")

    def _send_artifact(self, path: Path, name: str, kind: str) -> None:
        def send(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(f"{name}-{run.id}", type=kind)
            artifact.add_file(str(path))
            run.log_artifact(artifact)

        self._try(send)

    def how_to_look(self) -> str:
        """Return the address of the run, or the command that sends it."""
        if self._run is None:
            return "W&B         nothing was written"
        return f"W&B         wandb sync {Path(self._run.dir).parent}" if self._offline else f"W&B         {self._run.url}"

    def set_tag(self, name: str, value: str) -> None:
        """Set a tag in the summary of the run."""
        self._try(lambda run: run.summary.update({name: value}))

    def finish(self, status: Status) -> None:
        """Close the run, with an exit code that shows whether it finished."""
        self.set_tag("status", status)
        self._try(lambda run: run.finish(exit_code=0 if status == "FINISHED" else 1))

    def _try(self, call: Any) -> None:
        """Call a function with the run; whatever the client raises, training must go on."""
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:
            log.warning("Weights & Biases failed (%s); nothing more is sent to it", (str(error) or type(error).__name__)[:200])
            self._run = None
