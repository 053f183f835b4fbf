"""What a run may change that is resumed, and whether it has anything left to train."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from speechtrain.backends.checkpoint_files import LAST, read_extra
from speechtrain.config.effects import has_effect
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.moved import present_name
from speechtrain.errors import ConfigError, Problem, UserError
from speechtrain.tracking.base import flat
from speechtrain.tracking.run_folder import find_run, read_run_file, write_run_file
from speechtrain.training.history import HISTORY

Changes = Mapping[str, tuple[str, str]]
"""The value that a key had, and the one that it has, as text, by the dotted key."""

_LEARNT = ("model.", "features.", "task.", "tokenizer._target_", "backend.name", "optimizer._target_")
"""Beginnings of keys that weights, or the state of the optimizer, belong to."""
_COMPUTED = ("optimizer.fused", "optimizer.foreach")
"""Keys that say only how steps are computed."""
_OF_THE_START = ("resume", "rerun", "init_from", "task.metric")
"""Keys that matter to a run's beginning alone, and the metric, by which only the best epoch is chosen."""


def changes_of(cfg: ExperimentConfig) -> Changes:
    """Return what a run that is resumed changes of the config in its checkpoint; empty if nothing, or if no run is resumed.

    Raises:
        ConfigError: a key is changed that cannot be applied to what is learnt already.
    """
    if cfg.resume is None or (checkpoint := find_run(cfg.resume)[1]) is None:
        return {}
    stored: dict[str, str] = {}
    with suppress(UserError):  # of a damaged file, which is told when it is read as a whole, if there is no other
        stored = flat(read_extra(checkpoint).get("config", {}))
    now = flat(cfg.as_dict())
    compared = [key for key in now if key in stored and has_effect(key) and key not in _OF_THE_START]
    differing = ((key, (present_name(stored[key]), now[key])) for key in compared)
    changes = {key: values for key, values in differing if values[0] != values[1]}
    if problems := list(_problems(changes, cfg.resume)):
        raise ConfigError(problems)
    return changes


def _problems(changes: Changes, run: str) -> Iterator[Problem]:
    """Yield the changes that cannot be applied."""
    for key, (was, now) in changes.items():
        if key.startswith(_LEARNT):
            fix = f"leave it as it was, or start a new run from its weights with init_from={run} in place of resume="
            yield Problem(key, f"is {now}, but the run was trained with {was}", fix)
        elif (key.startswith("optimizer.") and key not in _COMPUTED and not _is_adjustable(was, now)) or (
            key == "optimizer.momentum" and float(was) == 0
        ):
            yield Problem(key, f"is {now}, but the state of the optimizer was made with {was}", "leave it as it was")
        elif key == "trainer.ema_decay" and was == "null":
            yield Problem(key, f"is {now}, but the run has no average of its weights so far", "leave it at null")
        elif key == "trainer.find_lr" and now == "True":
            yield Problem(key, "is true, but the rate is looked for before the first epoch only", "set optimizer.lr")


def _is_adjustable(was: str, now: str) -> bool:
    """Return whether both values are numbers, or lists of these: flags of an optimizer decide what its state holds."""
    values = [json.loads(each) if each[:1] in "[-.0123456789" else None for each in (was, now)]
    return all(isinstance(each, (int, float, list)) for each in values)


def note_changes(folder: Path, changes: Changes) -> str | None:
    """Note in `run.json` what a resumed run changes from now on; returns all that was changed so far, None if there is nothing."""
    noted: list[Any] = list(read_run_file(folder).get("resumed", []))
    if changes:
        noted.append({"epoch": epochs_in(folder) + 1, "changed": {key: list(values) for key, values in changes.items()}})
        write_run_file(folder, {"resumed": noted})
    return json.dumps(noted) if noted else None


def described(noted: str) -> Iterable[str]:
    """Return a line for each time that a run was resumed with other values, from what `note_changes` returned."""
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        return [f"was resumed at epoch {each['epoch']} with {_listed(each['changed'])}" for each in json.loads(noted)]
    return []


def _listed(changed: Mapping[str, Iterable[str]]) -> str:
    return ", ".join(f"{key}={now} (before: {was})" for key, (was, now) in changed.items())


def epochs_in(folder: Path) -> int:
    """Return the number of epochs in the history of a run."""
    try:
        return (folder / HISTORY).read_bytes().count(b"\n")
    except OSError:
        return 0


def check_unfinished(cfg: ExperimentConfig) -> None:
    """Check that a run which is resumed has something left to train.

    Raises:
        ConfigError: it has finished, and nothing in the config makes it go on.
    """
    if cfg.resume is None:
        return
    folder, checkpoint = find_run(cfg.resume)
    run = read_run_file(folder)
    if run.get("status") != "FINISHED" or "folds" in run or checkpoint is None or checkpoint.stem != LAST:
        return
    try:
        stored = flat(read_extra(checkpoint)["config"])
    except (UserError, LookupError):
        return
    now = flat(cfg.as_dict())
    limits = ("trainer.max_steps", "trainer.early_stopping.")
    changed = any(key.startswith(limits) and value != stored.get(key, value) for key, value in now.items())
    if not changed and cfg.trainer.epochs <= int(stored.get("trainer.epochs", 0)):
        done, patience = epochs_in(folder), now["trainer.early_stopping.patience"]
        early = f", or trainer.early_stopping.patience={2 * int(patience)}" if patience != "null" and done < cfg.trainer.epochs else ""
        fix = f"trainer.epochs={2 * cfg.trainer.epochs}{early} makes it go on; python -m speechtrain.evaluate from=... measures it again"
        raise ConfigError([Problem("resume", f"{folder} is finished, after {done} epochs", fix)])
