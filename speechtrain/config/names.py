"""The nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, allowed: Iterable[str], prefix: str = "") -> str:
    """What to tell someone who wrote `name` where only `allowed` names exist."""
    names = sorted(set(allowed))
    dotted = f"{prefix}." if prefix else ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{dotted}{near[0]}'?  (there is: {', '.join(names)})"
    return f"there is: {', '.join(names)}" if names else ""
