"""What a decoder is."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Decoder(Protocol):
    """What `decoder._target_` names."""

    def __call__(self, log_probs: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> list[list[int]]:
        """Labels of each utterance of log_probs (B, T', V) with lengths (B,)."""
        ...
