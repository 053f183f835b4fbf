"""The operations in which tasks write their losses, on Keras; see `speechtrain.tasks.base.Ops`."""

from __future__ import annotations

from typing import Any

import keras.ops as framework

from speechtrain.backends.keras import losses
from speechtrain.backends.keras.layers import frame_mask


class Ops:
    """The functions; `compiled`: XLA has to know every operation."""

    framework = framework

    def __init__(self, *, compiled: bool) -> None:
        self.ctc = losses.named("ctc", compiled=compiled)

    def mask(self, lengths: Any, like: Any) -> Any:
        """Make a mask (B, T) in float32: 1 inside each row, 0 behind its end."""
        return framework.cast(frame_mask(lengths, framework.shape(like)[1]), "float32")

    def one_hot(self, labels: Any, size: int) -> Any:
        """Turn labels (B,) into rows (B, size) with a 1 at the label."""
        return framework.one_hot(framework.cast(labels, "int32"), size, dtype="float32")

    def constant(self, values: Any, like: Any) -> Any:  # noqa: ARG002
        """Make an array of numbers in float32."""
        return framework.convert_to_tensor(values, dtype="float32")

    def sum(self, values: Any, axis: int | tuple[int, ...]) -> Any:
        """Reduce one axis or several."""
        return framework.sum(values, axis=axis)

    def mean(self, values: Any, axis: int | tuple[int, ...]) -> Any:
        """Reduce one axis or several."""
        return framework.mean(values, axis=axis)

    def absolute(self, values: Any) -> Any:
        """Compute the absolute value of each element."""
        return framework.absolute(values)

    def where(self, condition: Any, yes: Any, no: Any) -> Any:
        """Choose at each place between the one and the other."""
        return framework.where(condition, yes, no)
