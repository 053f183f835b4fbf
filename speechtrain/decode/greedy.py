"""Best path decoding (Graves et al. 2006, section 3.2)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class GreedyDecoder:
    """Takes the most probable label of each frame, joins repeats, then removes blanks (label 0)."""

    def __call__(self, log_probs: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> list[list[int]]:
        """Decode log_probs (B, T', V) of lengths (B,) into the labels of each utterance, without blanks."""
        best = log_probs.argmax(-1)
        first = np.ones(best.shape, dtype=bool)
        first[:, 1:] = best[:, 1:] != best[:, :-1]
        inside = np.arange(best.shape[1])[None, :] < np.asarray(lengths)[:, None]
        kept = first & inside & (best != 0)
        return [row[mask].tolist() for row, mask in zip(best, kept, strict=True)]
