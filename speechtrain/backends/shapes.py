"""Few shapes, where each is compiled for itself."""

from __future__ import annotations


def round_up(size: int, steps: int) -> int:
    """The next of (steps, ..., 2 * steps - 1) x 2^n; smaller sizes stay as they are."""
    unit = 1
    while size > unit * (2 * steps - 1 if steps > 1 else 1):
        unit *= 2
    return -(-size // unit) * unit
