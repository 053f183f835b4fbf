"""What a run may change that is resumed, and whether it has anything left to train."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf, open_dict

from speechtrain.addresses import masked_values
from speechtrain.backends.checkpoint_files import LAST, last_checkpoint, read_extra
from speechtrain.config.checkpoint_values import with_checkpoint_files
from speechtrain.config.effects import has_effect
from speechtrain.config.experiment import ExperimentConfig, kind_of_test
from speechtrain.config.moved import present_name
from speechtrain.config.plain import ABSENT, literal, plain_mapping
from speechtrain.errors import ConfigError, Problem, UserError
from speechtrain.files import launch_folder
from speechtrain.tracking.base import flat
from speechtrain.tracking.mlflow.location import experiment_name, local_uri, noted_address, stored_address, tracking_address
from speechtrain.tracking.run_folder import RUN_FILE, UTTERANCES, find_run, fold_folder, places_of, read_run_file, write_run_file
from speechtrain.training.cross_validation import is_cross_validation
from speechtrain.training.history import HISTORY

if TYPE_CHECKING:
    from speechtrain.data.task_data import PreparedCorpus

log = logging.getLogger(__name__)

Changes = Mapping[str, tuple[str, str]]
"""The value that a key had, and the one that it has, as text, by the dotted key."""

_KEYS_OF_WEIGHTS = ("model.", "features.", "task.", "tokenizer._target_", "backend.name", "optimizer._target_", "data.split.", "data.fold")
"""Beginnings of keys that weights, the state of the optimizer, or the division of the data belong to."""
_KEPT_GROUPS = ("features", "model", "task")
"""Groups that compute for a resumed run what they computed when it began."""
_KEYS_OF_SPEED = ("optimizer.fused", "optimizer.foreach")
"""Keys that say only how steps are computed."""
_OF_THE_START = ("resume", "rerun", "init_from", "task.metric")
"""Keys that matter to a run's beginning alone, and the metric, by which only the best epoch is chosen."""


def _stored_config(cfg: ExperimentConfig) -> Mapping[str, Any]:
    """Return the config in the checkpoint that a run is resumed from, of a cross-validation that of its first fold; empty without one."""
    if cfg.resume is None:
        return {}
    folder, checkpoint = find_run(cfg.resume)
    if (checkpoint := checkpoint or last_checkpoint(fold_folder(folder, 0))) is not None:
        with suppress(UserError):  # of a damaged file, which is reported when it is read as a whole, if there is no other
            stored = read_extra(checkpoint).get("config")
            return stored if isinstance(stored, Mapping) else {}
    return {}


def with_values_of_the_start(cfg: ExperimentConfig) -> ExperimentConfig:
    """Return a config with what a run keeps of its beginning.

    That is what the files of a pretrained checkpoint said, and where it is resumed what was chosen (`speechtrain.training.choices`).

    Raises:
        ConfigError: the checkpoint cannot be read.
        UserError: its config holds something else than plain values.
    """
    stored = _stored_config(cfg)
    cfg = with_checkpoint_files(cfg, stored)
    if not cfg.choose or not stored:
        return cfg
    start = OmegaConf.create(plain_mapping(stored, f"{cfg.resume}: its config"))
    chosen = {key: OmegaConf.select(start, key, default=ABSENT) for key in cfg.choosable}
    return cfg.with_values({**{key: value for key, value in chosen.items() if value is not ABSENT}, "choose": []})


def without_newer_keys(cfg: ExperimentConfig, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Return the config of a run that is resumed without keys which came after it began: without them, classes compute as they did then.

    Args:
        cfg: the config.
        overrides: overrides as typed.

    Raises:
        ConfigError: such a key was typed.
    """
    stored = _stored_config(cfg)
    composed = cfg.composed.copy()
    typed = {item.lstrip("+").partition("=")[0] for item in overrides}
    refused: list[str] = []
    for group in _KEPT_GROUPS:
        before, container = stored.get(group), OmegaConf.to_container(composed[group], resolve=False)
        assert isinstance(container, dict)
        values = {str(key): value for key, value in container.items()}
        if not isinstance(before, Mapping) or present_name(str(before.get("_target_"))) != values["_target_"]:
            continue
        later = [key for key in values if key not in before and f"{group}.{key}" not in _OF_THE_START]
        refused += [f"{group}.{key}" for key in later if f"{group}.{key}" in typed]
        if later:
            log.info("%s: not set, as the run that is resumed began without", ", ".join(f"{group}.{key}" for key in later))
            with open_dict(composed):
                composed[group] = {key: value for key, value in values.items() if key not in later}
    if refused:
        message = "is not known to the run that is resumed, which began before there was such a key"
        fix = "leave it out, or start a new run from its weights with init_from="
        raise ConfigError([Problem(path, message, fix) for path in refused])
    return ExperimentConfig.of(composed)


def with_tracking_of(cfg: ExperimentConfig) -> ExperimentConfig:
    """Return the config of a run that is resumed with the server or database, and the experiment, in which MLflow has it, if it names none.

    Raises:
        ConfigError: the run is another user's and names a server or an experiment, without `trust=true`; or its password is not known.
    """
    node = cfg.tracking.get("mlflow")
    if cfg.resume is None or node is None or "tracking_uri" not in node:
        return cfg
    places, is_own = places_of(find_run(cfg.resume)[0])
    place, key = places.get("mlflow", {}), "tracking.mlflow.tracking_uri"
    typed = node["tracking_uri"]
    if "tracking_uri" not in place or (typed is not None and masked_values(str(typed)) != place["tracking_uri"]):
        return cfg
    values, strange = {}, {}
    address = noted_address(place) if is_own or cfg.trust else place["tracking_uri"]
    if typed is None or (is_own and address != place["tracking_uri"]):
        values[key] = stored_address(address, key)
        if tracking_address(values[key]) not in (tracking_address(None), local_uri(launch_folder())):
            strange[key] = address
    if node.get("experiment") is None and "experiment" in place:
        values[_EXPERIMENT] = place["experiment"]
        if place["experiment"] != experiment_name(None):
            strange[_EXPERIMENT] = place["experiment"]
    if strange and not is_own and not cfg.trust:
        fix = "type it again, or trust=true takes it, if you trust the run"
        messages = {each: f"in {RUN_FILE} of the run is {value!r:.200}, to which it would be sent" for each, value in strange.items()}
        raise ConfigError([Problem(each, message, fix) for each, message in messages.items()])
    return cfg.with_values({each: literal(value) for each, value in values.items()}) if values else cfg


_EXPERIMENT = "tracking.mlflow.experiment"


def check_same_division(cfg: ExperimentConfig, data: PreparedCorpus) -> None:
    """Check that a run which is resumed is trained and validated on the utterances that it began with.

    A list of test data may be another one: it takes nothing from the other splits.

    Raises:
        ConfigError: a split holds other utterances, or other texts.
    """
    if cfg.resume is None or (found := find_run(cfg.resume))[1] is None:
        return
    run = read_run_file(found[0])
    audio = UTTERANCES not in run  # an earlier version noted the fingerprints with the audio alone
    noted = run.get("data" if audio else UTTERANCES)
    if not isinstance(noted, Mapping) or (audio and not data.cache.checksums):
        return
    problems = []
    for split in ("train", "val"):
        if split in noted and noted[split] not in (data.fingerprint(split, audio=False), data.fingerprint(split, audio=audio)):
            message = f"the {split} data are not those that the run was trained with{', or its version divided them otherwise' * audio}"
            fix = f"resume with the same data, or start a new run from its weights with init_from={cfg.resume} in place of resume="
            problems.append(Problem("resume", message, fix))
    if problems:
        raise ConfigError(problems)


def changes_of(cfg: ExperimentConfig) -> Changes:
    """Return what a run that is resumed changes of the config in its checkpoint; empty if nothing, or if no run is resumed.

    Raises:
        ConfigError: a key is changed that cannot be applied to what is learnt already.
    """
    stored = flat(_stored_config(cfg))
    now = flat(cfg.as_dict())
    besides = (*_OF_THE_START, *(["data.fold"] if is_cross_validation(cfg) else []))
    compared = [key for key in now if key in stored and has_effect(key) and key not in besides]
    differing = ((key, (present_name(stored[key]), now[key])) for key in compared)
    changes = {key: values for key, values in differing if values[0] != values[1]}
    if problems := list(_problems(changes, str(cfg.resume))):
        raise ConfigError(problems)
    return changes


def _problems(changes: Changes, run: str) -> Iterator[Problem]:
    """Yield the changes that cannot be applied."""
    for key, (was, now) in changes.items():
        if key.startswith(_KEYS_OF_WEIGHTS):
            fix = f"leave it as it was, or start a new run from its weights with init_from={run} in place of resume="
            yield Problem(key, f"is {now}, but the run was trained with {was}", fix)
        elif (key.startswith("optimizer.") and key not in _KEYS_OF_SPEED and not _is_adjustable(was, now)) or (
            key == "optimizer.momentum" and was in ("0", "0.0")
        ):
            yield Problem(key, f"is {now}, but the state of the optimizer was made with {was}", "leave it as it was")
        elif key == "budget_minutes":
            fix = "leave it as it was; trainer.epochs=... makes the run longer or shorter"
            yield Problem(key, f"is {now}, but what follows from it was chosen for {was} when the run began", fix)
        elif key == "trainer.ema_decay" and was == "null":
            yield Problem(key, f"is {now}, but the run has no average of its weights so far", "leave it at null")
        elif key == "trainer.find_lr" and now == "True":
            yield Problem(key, "is true, but the rate is looked for before the first epoch only", "set optimizer.lr")


def _is_adjustable(was: str, now: str) -> bool:
    """Return whether both values are numbers, or lists of these: flags of an optimizer decide what its state holds."""
    with suppress(ValueError):
        return all(isinstance(json.loads(each), (int, float, list)) for each in (was, now))
    return False


def note_changes(folder: Path, changes: Changes) -> str | None:
    """Note in `run.json` what a resumed run changes from now on; returns all that was changed so far, None if there is nothing."""
    noted: list[Any] = list(read_run_file(folder).get("resumed", []))
    if changes:
        noted.append({"epoch": epochs_in(folder) + 1, "changed": {key: list(values) for key, values in changes.items()}})
        write_run_file(folder, {"resumed": noted})
    return _as_tag(noted) if noted else None


_TAG_CHARACTERS = 8000
"""Characters of a tag that MLflow keeps."""
_TIMES = 100
"""Times that a run was resumed of which a tag has the epochs alone, where it has no room for more."""


def _as_tag(noted: list[Any]) -> str:
    """Return what was changed as JSON that fits into a tag: only the first keys of each time, or only the last times, where all do not."""
    text = json.dumps(noted)
    for most in (20, 5, 1, 0):
        if len(text) <= _TAG_CHARACTERS:
            break
        shortened = ({**each, "changed": dict(list(each["changed"].items())[:most]), "more": len(each["changed"]) - most} for each in noted)
        text = json.dumps(list(shortened))
    return text if len(text) <= _TAG_CHARACTERS else json.dumps(json.loads(text)[-_TIMES:])


def described(noted: str) -> Iterable[str]:
    """Return a line for each time that a run was resumed with other values, from what `note_changes` returned."""
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        return [f"was resumed at epoch {each['epoch']} with {_listed(each['changed'], each.get('more', 0))}" for each in json.loads(noted)]
    return []


def _listed(changed: Mapping[str, Iterable[str]], more: int) -> str:
    keys = [f"{key}={now} (before: {was})" for key, (was, now) in changed.items()]
    return ", ".join([*keys, *([f"{more} more keys, which run.json has"] if more > 0 else [])])


def epochs_in(folder: Path) -> int:
    """Return the number of epochs in the history of a run."""
    try:
        return (folder / HISTORY).read_bytes().count(b"\n")
    except OSError:
        return 0


def check_unfinished(cfg: ExperimentConfig) -> None:
    """Check that a run which is resumed has something left to train.

    Raises:
        ConfigError: it has finished, and nothing in the config makes it go on; or it would go on as a test of the settings, on less data.
    """
    if cfg.resume is None:
        return
    _check_no_test(cfg)
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


def _check_no_test(cfg: ExperimentConfig) -> None:
    stored = _stored_config(cfg)
    kind, trainer = kind_of_test(cfg), stored.get("trainer")
    is_test = bool(stored.get("dry_run") or stored.get("test_run") or (isinstance(trainer, Mapping) and trainer.get("fast_dev_run")))
    if kind is None or not stored or is_test:
        return
    key = {"fast_dev_run": "trainer.fast_dev_run", "dry_run": "dry_run"}.get(kind, "test_run")
    message = "makes a test of a run, on less data, and the run that is resumed is none"
    fix = "leave it out; to try its settings, give its command with this key and without resume="
    raise ConfigError([Problem(key, message, fix)])
