"""How whole numbers of 8 bits stand for the values of a quantised model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Whole = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Scale:
    """How whole numbers stand for values: value = scale * (number - zero)."""

    scale: float
    zero: int

    def quantised(self, values: npt.NDArray[np.float32]) -> Whole:
        """Return the nearest whole numbers between -128 and 127, computed in float32 as the C++ example does."""
        numbers: Whole = np.clip(np.rint(values / np.float32(self.scale)) + self.zero, -128, 127).astype(np.int8)
        return numbers

    def values(self, numbers: Whole) -> npt.NDArray[np.float32]:
        """Return the values that whole numbers stand for."""
        return np.float32(self.scale) * (numbers.astype(np.float32) - np.float32(self.zero))
