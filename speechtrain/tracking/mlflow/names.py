"""Names of metrics, parameters and tags as MLflow takes them: it refuses a whole batch for a single name of another form."""

from __future__ import annotations

import hashlib
import re

_LONGEST = 250  # characters that MLflow takes
_REFUSED = re.compile(r"[^\w .:/-]")
_DIGEST = 6  # hexadecimal digits


def accepted_name(name: str) -> str:
    """Return a name that MLflow takes; a changed one ends in a digest of the original, so that two names never become one.

    `val/acc@5` becomes `val/acc_5-4dc6e1`. A name also counts as a path, which must have no empty part, `.` or `..`.
    """
    parts = _REFUSED.sub("_", name).split("/")
    accepted = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    if accepted == name and len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{accepted[: _LONGEST - _DIGEST - 1]}-{digest}"


_BEHIND = "values/"
_MOVED = ("best/", "data/", "model/")


def name_behind_curves(name: str) -> str:
    """Return the name under which MLflow keeps a single value: charts of a run stand in the order of names, `val` before `values`.

    `best/val/cer` becomes `values/best val cer`; those of the test and of epochs keep their names.
    """
    return f"{_BEHIND}{name.replace('/', ' ')}" if name.startswith(_MOVED) else name


def name_of_metric(kept: str) -> str:
    """Return the name of a metric that MLflow keeps under this one."""
    return kept.removeprefix(_BEHIND).replace(" ", "/") if kept.startswith(_BEHIND) else kept
