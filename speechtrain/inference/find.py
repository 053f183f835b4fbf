"""Finding and loading the trained model that `from=` names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechtrain.backends import checkpoint_files
from speechtrain.config.experiment import ExperimentConfig, kind_of_test
from speechtrain.config.hub import language_of
from speechtrain.config.overlay import chooses, overlaid
from speechtrain.config.pretrained import Checkpoint, is_checkpoint
from speechtrain.config.schemas.commands import ModelCommand
from speechtrain.console import announce
from speechtrain.errors import ConfigError, Problem, UserError, unwritable
from speechtrain.files import ignore_in_git, is_file, is_folder, launch_folder, user_path
from speechtrain.inference.archive import SUFFIX, stored_config
from speechtrain.tracking.mlflow.lookup import open_reader
from speechtrain.tracking.run_folder import find_weights, read_run_file

if TYPE_CHECKING:
    from speechtrain.inference.recognizer import Recognizer

_FIX = "give last, a run's folder, a checkpoint, an archive, an MLflow run id, a model URI such as models:/NAME/1, hf://OWNER/NAME"


def find_model(name: str, *, tracking_uri: str | None = None, experiment: str | None = None) -> Path:
    """Find the file that a model is loaded from.

    Args:
        name: `last`, a run's folder, a checkpoint, an archive, a folder of MLflow's, an MLflow run id (or its first letters, or the run's
            name), a model URI (`models:/NAME/1`, `runs:/ID/model`), or a pretrained checkpoint: its folder, or `hf://OWNER/NAME` on the
            hub, with the name of a language behind it where it has several (`hf://facebook/mms-1b-all@deu`).
        tracking_uri: see `speechtrain.tracking.mlflow.location.tracking_address`.
        experiment: MLflow experiment in which run ids and names are looked up, see `location.experiment_name`.

    Raises:
        ConfigError: there is no such model.
        UserError: the model cannot be fetched.
    """
    wanted = name.strip("'\"")
    if wanted.startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
        return _weights_in(open_reader(tracking_uri, experiment).download(wanted), wanted)
    path = user_path(wanted)
    if is_file(path):
        if path.suffix not in (*checkpoint_files.SUFFIXES, SUFFIX):
            raise ConfigError([Problem("from", f"{path} is neither a checkpoint nor an archive", _FIX)])
        return path.absolute()
    if (folder := _in_folder(wanted, path)) is not None:
        return folder
    if _can_only_be_a_file(path):
        raise ConfigError([Problem("from", f"there is no file {path}", _FIX)])
    try:
        return find_weights(wanted, "from")
    except ConfigError as local:
        if wanted == "last" or (is_folder(path) and not read_run_file(path).get("mlflow_run_id")):
            raise
        try:
            reader = open_reader(tracking_uri, experiment, runs=[wanted])
            run = reader.run(wanted, key="from")
        except UserError:
            raise local from None
        try:
            return find_weights(run.id, "from")
        except ConfigError:  # its folder is on another machine
            return _weights_in(reader.download(f"runs:/{run.id}/{checkpoint_files.FOLDER}"), wanted)


def load(
    name: str = "last", *overrides: str, trust: bool = False, tracking_uri: str | None = None, experiment: str | None = None
) -> Recognizer:
    """Load a trained model, ready to transcribe and align.

    Args:
        name: see `find_model`.
        overrides: overrides of its `decoder` and `backend`, as typed on the command line: `"decoder=beam", "decoder.lexicon=words.txt"`.
        trust: whether its config may name classes of other packages, which are then run.
        tracking_uri: see `find_model`.
        experiment: see `find_model`.

    Raises:
        UserError: there is no such model, it cannot be used, or an override does not fit.
    """
    weights = find_model(name, tracking_uri=tracking_uri, experiment=experiment)
    return _recognizer(weights, *stored_config(weights, trust=trust), overrides)


def model_names(source: Any) -> dict[str, str]:
    """Return the models that `from=` names, one or several, by the names that clients ask for.

    Args:
        source: one of the names that `find_model` takes, a list of them, or a mapping of clients' names to them. Without a name of its own
            a model has that of its file or folder, or what stands behind `models:/` or `hf://`.

    Raises:
        ConfigError: it is none of these, or two models have the same name.
    """
    fix = "give one, several as [a,b], or {NAME: a, OTHER: b}"
    if isinstance(source, Mapping):
        pairs = [(str(name), model) for name, model in source.items()]
    else:
        listed = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
        pairs = [(_name_of(str(model)), model) for model in listed]
    if not pairs:
        raise ConfigError([Problem("from", "names no model", fix)])
    names: dict[str, str] = {}
    for name, model in pairs:
        if not name or model is None or not isinstance(model, (str, int, float)):
            raise ConfigError([Problem("from", f"cannot be read: {name or model!r} names no model", fix)])
        if name in names:
            raise ConfigError([Problem("from", f"two models have the name '{name}'", "give names: {NAME: a, OTHER: b}")])
        names[name] = str(model)
    return names


def _name_of(source: str) -> str:
    wanted = source.strip("'\"")
    path = user_path(wanted)
    if is_file(path):
        return path.stem
    return path.name if is_folder(path) else re.sub(r"^[a-z-]+:/+", "", wanted)


StoredModel = tuple[Path, ExperimentConfig, list[str]]
"""The file of a trained model, and the config and the vocabulary that it was trained with."""


def stored_for(cfg: ModelCommand) -> StoredModel:
    """Find the model that a command's own config names, and read the config and the vocabulary it was trained with.

    Raises:
        UserError: see `find_model` and `stored_config`.
    """
    weights = find_model(str(cfg.source), tracking_uri=cfg.tracking_uri, experiment=cfg.experiment)
    announce(f"loading     {weights}")
    trained, vocabulary = stored_config(weights, trust=cfg.trust)
    if (kind := kind_of_test(trained)) is not None:
        announce(f"            of a test run ({kind}), shortened, and only for trying things out")
    return weights, trained, vocabulary


def check_data_named(weights: Path, overrides: Sequence[str]) -> None:
    """Check that data are named for a pretrained checkpoint, which has none of its own; a run's config names those it was trained on.

    Raises:
        ConfigError: they are not.
    """
    if is_checkpoint(str(weights)) and not any(chooses(item, "data") for item in overrides):
        message = f"is not chosen, and {weights} is a pretrained checkpoint, which has no data of its own"
        fix = "name them, for example data=manifest data.root=FOLDER data.test=test.jsonl, data=librispeech data.root=FOLDER or data=digits"
        raise ConfigError([Problem("data", message, fix)])


def load_for(cfg: ModelCommand, overrides: Sequence[str]) -> Recognizer:
    """Load the model that a command's own config names; see `load`."""
    return _recognizer(*stored_for(cfg), overrides)


def _recognizer(weights: Path, stored: ExperimentConfig, vocabulary: Sequence[str], overrides: Sequence[str]) -> Recognizer:
    """Return the recognizer of a model with overrides, which are checked before any framework is imported."""
    if wrong := [item for item in overrides if item.lstrip("+").startswith("data") and not item.startswith("data.channel=")]:
        raise ConfigError([Problem(wrong[0].partition("=")[0], "is not accepted here", "speechtrain.evaluate takes data=...")])
    cfg = overlaid(stored, overrides)
    from speechtrain.inference.recognizer import Recognizer

    return Recognizer.of(weights, cfg, vocabulary)


def run_folder(weights: Path) -> Path | None:
    """Return the folder of the run that a checkpoint belongs to; None: it lies elsewhere."""
    folder = weights.parent.parent if weights.parent.name == checkpoint_files.FOLDER else weights.parent
    return folder if (folder / "run.json").is_file() else None


def results_folder(weights: Path, name: str, out: str | None) -> Path:
    """Make the folder for what a command writes about a model, and return its absolute path.

    Args:
        weights: the model.
        name: name of the folder in that of the model's run, or in the current one if there is no run; git ignores it.
        out: the folder that the user has named instead; None: none.

    Raises:
        UserError: it cannot be made.
    """
    run = run_folder(weights)
    folder = user_path(out).absolute() if out is not None else (run or launch_folder()) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, "out") from error
    if out is None and run is None:
        ignore_in_git(folder)
    return folder


def _in_folder(wanted: str, path: Path) -> Path | None:
    """Return the model in a folder that another program wrote: a pretrained checkpoint, or one of MLflow's; None: it is no such folder."""
    if is_checkpoint(wanted):
        return _checkpoint_folder(wanted)
    return _weights_in(path, wanted) if is_folder(path) and (path / "MLmodel").is_file() else None


def _can_only_be_a_file(path: Path) -> bool:
    return path.suffix in (*checkpoint_files.SUFFIXES, SUFFIX) or (len(path.parts) > 1 and not is_file(path) and not is_folder(path))


def _checkpoint_folder(name: str) -> Path:
    """Return the folder of a pretrained checkpoint, whose files may be fetched now; behind it the language, if one is named.

    Raises:
        ConfigError: it cannot be fetched, or has no weights.
    """
    checkpoint, language = language_of(name)
    found = Checkpoint.find(checkpoint, key="from")
    found.weight_files(language=language)
    return found.folder if language is None else found.folder.with_name(f"{found.folder.name}@{language}")


def _weights_in(folder: Path, name: str) -> Path:
    weights = sorted(path for path in folder.rglob("*") if path.suffix in checkpoint_files.SUFFIXES and is_file(path))
    best = [path for path in weights if path.name.startswith((checkpoint_files.BEST, "recognizer"))]
    if not weights:
        raise ConfigError([Problem("from", f"{name} holds no weights of speechtrain", _FIX)])
    return (best or weights)[-1]
