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
    """One run of a project.

    Args:
        project: its name.
        entity: who it belongs to; None: the user.
        mode: `online`, `offline`, or `auto`: online where somebody is logged in.
        log_checkpoint: keep the best checkpoint as an artifact.
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
        """Metrics of an epoch, or of a step."""
        axis = "batch" if all(name.startswith("step/") for name in metrics) else "epoch"
        self._do(lambda run: run.log({**metrics, axis: step}))

    def log_dataset(self, info: DatasetInfo) -> None:
        """A split, in the summary."""
        facts = {"fingerprint": info.fingerprint, "source": info.source, **info.facts}
        self._do(lambda run: run.summary.update({f"data.{info.split}.{name}": value for name, value in facts.items()}))

    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """A table."""

        def send(run: Any) -> None:
            import wandb

            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            run.log({name: wandb.Table(columns=list(columns), data=rows)})

        self._do(send)

    def log_file(self, path: Path, folder: str = "") -> None:
        """A file, as an artifact."""
        self._send_artifact(path, f"{folder}-{path.stem}".strip("-"), "report")

    def log_checkpoint(self, path: Path) -> None:
        """The checkpoint as an artifact, if the config wants it."""
        if self.keeps_checkpoint:
            self._send_artifact(path, "checkpoint", "model")

    def _send_artifact(self, path: Path, name: str, kind: str) -> None:
        def send(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(f"{name}-{run.id}", type=kind)
            artifact.add_file(str(path))
            run.log_artifact(artifact)

        self._do(send)

    def how_to_look(self) -> str:
        """Where it is, or how to send it."""
        if self._run is None:
            return "W&B         nothing was written"
        return f"W&B         wandb sync {Path(self._run.dir).parent}" if self._offline else f"W&B         {self._run.url}"

    def set_tag(self, name: str, value: str) -> None:
        """A word about the run, in its summary."""
        self._do(lambda run: run.summary.update({name: value}))

    def finish(self, status: Status) -> None:
        """Close the run."""
        self.set_tag("status", status)
        self._do(lambda run: run.finish(exit_code=0 if status == "FINISHED" else 1))

    def _do(self, call: Any) -> None:
        """Whatever the client raises, training must go on."""
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:
            log.warning("Weights & Biases failed (%s); nothing more is sent to it", (str(error) or type(error).__name__)[:200])
            self._run = None
