"""Errors that end a training, and the batch that is kept for looking into them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from speechtrain.data.batches import Batch
from speechtrain.errors import RunError
from speechtrain.files import atomically


class NonFiniteLossError(RunError):
    """The loss became NaN or infinite; the message names the utterances of the batch."""

    def __init__(self, ids: Sequence[str], epoch: int, saved: Path) -> None:
        self.ids = tuple(ids)
        shown = ", ".join(self.ids[:8]) + (f" and {len(self.ids) - 8} more" if len(self.ids) > 8 else "")
        super().__init__(
            f"the loss became NaN or infinite in epoch {epoch + 1}, on the batch of {shown}\n"
            f"    the batch is kept in {saved}\n"
            "    -> lower optimizer.lr, lengthen the warm-up, or lower trainer.gradient_clip_val; look at these utterances"
        )


class OutOfMemoryError(RunError):
    """A batch does not fit into the memory of its device; the message names the longest of its utterances."""

    def __init__(self, batch: Batch, reason: str) -> None:
        self.ids = batch.ids
        longest = int(batch.feature_lengths.argmax())
        count, frames = batch.features.shape[:2]
        shown = ", ".join(batch.ids[:8]) + (f" and {len(batch.ids) - 8} more" if len(batch.ids) > 8 else "")
        super().__init__(
            f"a batch of {count} utterances, {batch.seconds:.0f} s in all, does not fit into memory ({reason})\n"
            f"    utterances: {shown}; the longest is {batch.ids[longest]} with {frames} frames\n"
            f"    -> set data.batch_seconds={max(1, round(batch.seconds / 2))} or less, data.max_duration below the longest, or "
            "trainer.gradient_checkpointing=true"
        )


def save_bad_batch(batch: Batch, folder: Path) -> Path:
    """Keep a batch for inspection as `bad_batch.npz`."""
    path = folder / "bad_batch.npz"
    with atomically(path) as temporary:
        np.savez(
            temporary,
            features=batch.features,
            feature_lengths=batch.feature_lengths,
            targets=batch.targets,
            target_lengths=batch.target_lengths,
            ids=np.array(batch.ids),
        )
    return path
