"""Names of runs that tell what they are: the model, the data, what was typed on the command line, and when."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from speechtrain.addresses import masked
from speechtrain.config.differences import chosen_options
from speechtrain.config.effects import has_effect

_LONGEST = 60
"""Characters of what was typed."""
_LONGEST_ITEM = 28
"""Characters of one override."""
_FOLDERS = re.compile(r"[^,\[\]{}()'\"=]*[/\\](?=[^,\[\]{}()'\"=/\\])")
"""Matches what stands before the last part of a path, also in a list, and of one with blanks."""
_IN_OTHER_PARTS = ("model", "data", "dry_run", "test_run", "trainer.fast_dev_run", "resume", "rerun")
"""Keys whose values stand in the name already, or are those of an earlier run."""


def name_of_run(values: Mapping[str, Any], overrides: Sequence[str], test: str | None, started: datetime | None = None) -> str:
    """Return the default name of a run, for example `tdnn-digits lr=0.003 12-01 14:05`, or `mlp-digits (test: dry_run) 12-01 14:10`.

    Args:
        values: the run's config.
        overrides: what was typed.
        test: the kind of a run that tests the settings; None of a real run.
        started: when the run began; None: now.
    """
    time = (started or datetime.now()).strftime("%m-%d %H:%M")  # the user's own clock
    return " ".join(filter(None, ["-".join(names_of(values)), _typed(overrides), f"(test: {test})" if test else "", time]))


def names_of(values: Mapping[str, Any]) -> list[str]:
    """Return the names of the model and of the data of a config, as on the command line, or of their classes."""
    options = chosen_options(values)
    return [options[group][0] for group in ("model", "data") if group in options]


def _typed(overrides: Sequence[str]) -> str:
    """Return overrides in short, each by the last part of its key, as many as there is room for; a sign tells that others are left out."""
    parts: list[str] = []
    left_out = False
    for item in overrides:
        key, _, value = item.lstrip("+").partition("=")
        if key in _IN_OTHER_PARTS or key.startswith(("hydra", "~")) or not has_effect(key):
            continue
        text = _short(masked(value if key == "experiment" else f"{key.rpartition('.')[2]}={value}"))
        if sum(map(len, parts)) + len(parts) + len(text) > _LONGEST:
            left_out = True
        else:
            parts.append(text)
    return " ".join([*parts, "…"] if left_out else parts)


def _short(text: str) -> str:
    """Return an override on one line, cut, with paths by their last parts: their folders may tell of people, and a name is seen by many."""
    text = _FOLDERS.sub("", " ".join(text.split())).rstrip("/\\")
    return text if len(text) <= _LONGEST_ITEM else f"{text[: _LONGEST_ITEM - 1].rstrip()}…"
