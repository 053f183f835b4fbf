"""TensorBoard beside MLflow: event files in the run's folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from speechtrain.tracking.base import DatasetInfo, RunInfo, Status, Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


class TensorBoardTracker(Tracker):
    """Writes event files; without the package it warns once and does nothing.

    Args:
        folder: name of the folder in the run's folder.
        table_rows: how many rows of a table are kept, as text.
    """

    def __init__(self, folder: str = "tensorboard", table_rows: int = 50) -> None:
        self.folder = folder
        self.table_rows = table_rows
        self._writer: SummaryWriter | None = None
        self._path = Path()

    def start(self, info: RunInfo) -> None:
        """Open the event file, and write tags and texts."""
        self._path = info.folder / self.folder
        if "tensorflow" not in sys.modules:  # with this module there, TensorBoard writes its files without TensorFlow
            sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.warning("TensorBoard is not installed, so nothing is written for it\n    -> pip install 'speechtrain[tensorboard]'")
            return
        self._writer = SummaryWriter(str(self._path), max_queue=200, flush_secs=30)
        for name, text in info.texts.items():
            self._writer.add_text(name, f"```\n{text}\n```")
        self._writer.add_text("tags", _markdown({"tag": list(info.tags), "value": list(info.tags.values())}, len(info.tags)))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log each metric as a scalar."""
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)

    def log_dataset(self, info: DatasetInfo) -> None:
        """Log the facts of a split as text."""
        if self._writer is not None:
            facts = {"fingerprint": info.fingerprint, "source": info.source, **{name: f"{value:g}" for name, value in info.facts.items()}}
            self._writer.add_text(f"data/{info.split}", _markdown({"fact": list(facts), "value": list(facts.values())}, len(facts)))

    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Log the first rows as text."""
        if self._writer is not None:
            self._writer.add_text(name, _markdown(columns, self.table_rows))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a picture; other files are in the run's folder anyway."""
        if self._writer is not None and path.suffix == ".png":
            import numpy as np
            from PIL import Image

            with Image.open(path) as image:
                self._writer.add_image(f"{folder}/{path.stem}".strip("/"), np.asarray(image.convert("RGB")), dataformats="HWC")

    def log_checkpoint(self, path: Path) -> None:
        """Do nothing, as checkpoints are in the run's folder."""

    def how_to_look(self) -> str:
        """Return the command that opens the event files."""
        return f"TensorBoard tensorboard --logdir {self._path}" if self._writer is not None else "TensorBoard is not installed"

    def set_tag(self, name: str, value: str) -> None:
        """Log a tag as text."""
        if self._writer is not None:
            self._writer.add_text(name, value)

    def finish(self, status: Status) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.add_text("status", status)
            self._writer.close()


def _markdown(columns: Mapping[str, Sequence[Any]], rows: int) -> str:
    """Return a table in Markdown, which TensorBoard shows."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in list(zip(*columns.values(), strict=True))[:rows]:
        cells = [" ".join(str("" if cell is None else cell).replace("|", r"\|").split()) for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
