"""Bounds of an export, beyond which it fails: what does not fit into a device is no result."""

from __future__ import annotations

from speechtrain.errors import UserError


def check_bound(kind: str, key: str, value: float, bound: float | None) -> None:
    """Check that a measurement keeps to its bound.

    Args:
        kind: the format.
        key: the key under `tflite` that gives the bound.
        value: the measurement.
        bound: the most that is allowed; None: no bound.

    Raises:
        UserError: the measurement is greater.
    """
    if bound is not None and value > bound:
        fix = f"train a smaller model, or raise tflite.{key}"
        raise UserError(f"{kind}: {value:,.6g} is more than tflite.{key}, which allows {bound:,.6g}\n    -> {fix}")
