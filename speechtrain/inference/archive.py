"""Archives, which hold all of a trained model: weights, resolved config, vocabulary, history, evaluation, exports.

An archive is a zip with an index (`archive.json`) of its files and their checksums. Reading one executes no code of it, and nothing is
written outside of the folder that it is read into.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from speechtrain.backends import zip_files
from speechtrain.backends.checkpoint_files import SUFFIXES, read_extra
from speechtrain.config.checkpoint_values import with_checkpoint_files
from speechtrain.config.compose import compose_unchecked
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.hub import language_of
from speechtrain.config.pretrained import is_checkpoint
from speechtrain.config.stored import stored_vocabulary
from speechtrain.data.text.base import build_tokenizer
from speechtrain.errors import UserError, first_line
from speechtrain.files import atomically

SUFFIX = ".zip"
INDEX = "archive.json"
_KIND = "speechtrain archive"
_VERSION = 1
_BLOCK = 1 << 20


def write_archive(path: Path, files: Mapping[str, Path | str], facts: Mapping[str, Any]) -> None:
    """Write an archive, which appears whole or not at all.

    Args:
        path: the file.
        files: a file or a text, by its name in the archive.
        facts: further entries of the index; `weights` names the file that a model is loaded from.
    """
    with atomically(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        sums = {}
        for name, content in files.items():
            if isinstance(content, Path):
                archive.write(content, name)
                with content.open("rb") as file:
                    sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
            else:
                archive.writestr(name, content)
                sums[name] = hashlib.sha256(content.encode()).hexdigest()
        archive.writestr(INDEX, json.dumps({"kind": _KIND, "version": _VERSION, **facts, "files": sums}, indent=2))


def read_index(path: Path) -> dict[str, Any]:
    """Read the index of an archive.

    Raises:
        UserError: the file is no archive of speechtrain, is damaged, or names files outside of its folder.
    """
    with _opened(path) as archive:
        return _index(path, archive)


def stored_config(path: str | Path, *, trust: bool = False) -> tuple[ExperimentConfig, list[str]]:
    """Read the resolved config and the vocabulary that the model of a checkpoint or an archive was trained with.

    Raises:
        UserError: the file holds no model, or names classes of other packages and is not trusted.
    """
    if is_checkpoint(path):
        cfg = _pretrained_config(path)
        return cfg, list(build_tokenizer(cfg.tokenizer).vocabulary)
    with weights_of(Path(path)) as weights:
        extra = read_extra(weights)
    return ExperimentConfig.stored(extra.get("config"), str(path), trust=trust), stored_vocabulary(extra.get("vocabulary"), str(path))


def _pretrained_config(path: str | Path) -> ExperimentConfig:
    """Make the config with which a pretrained checkpoint is used as it is: with its own input, head and vocabulary.

    Raises:
        ConfigError: its files cannot be read.
    """
    name, language = language_of(path)
    cfg = compose_unchecked(["model=pretrained", "tokenizer=pretrained", "model.path=."])
    read = with_checkpoint_files(ExperimentConfig.of(cfg).with_values({"model.path": name, "model.language": language}))
    rate = read.features["extractor"].get("sampling_rate")
    return read if rate is None else read.with_values({"features.sample_rate": rate})


@contextmanager
def weights_of(path: Path) -> Iterator[Path]:
    """Yield the file of weights of an archive, in a folder that is removed afterwards; any other path is yielded unchanged.

    Raises:
        UserError: see `read_index`; or its weights are not what the index says.
    """
    if path.suffix != SUFFIX:
        yield path
        return
    with TemporaryDirectory() as folder, _opened(path) as archive:
        index = _index(path, archive)
        name = str(index.get("weights"))
        if name not in index["files"] or Path(name).suffix not in SUFFIXES:
            raise UserError(f"{path}: the archive holds no weights\n    -> write it again with python -m speechtrain.export")
        _check(path, archive, name, index["files"][name])
        yield _extracted(path, archive, name, Path(folder))


def extract(path: Path, folder: Path) -> list[Path]:
    """Write all files of an archive into a folder.

    Raises:
        UserError: see `weights_of`.
    """
    with _opened(path) as archive:
        index = _index(path, archive)
        for name, checksum in index["files"].items():
            _check(path, archive, name, checksum)
        return [_extracted(path, archive, name, folder) for name in index["files"]]


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zip_files.opened(path))
        except zip_files.UNREADABLE as error:
            message = f"{path}: is no archive of speechtrain ({first_line(error)})"
            raise UserError(f"{message}\n    -> give a file of speechtrain.export") from error
        yield archive


def _index(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    try:
        index = json.loads(zip_files.read_text(archive, INDEX))
        files = dict(index["files"])
        known = index["kind"] == _KIND
    except zip_files.UNREADABLE as error:
        message = f"{path}: is no archive of speechtrain (no {INDEX} in it that can be read)"
        raise UserError(f"{message}\n    -> give a file of speechtrain.export") from error
    if not known or index.get("version") != _VERSION:
        raise UserError(f"{path}: is of version {index.get('version')!r:.40}, this program reads {_VERSION}\n    -> update speechtrain")
    inside = set(archive.namelist())
    for name in {*inside, *files}:
        parts = PurePosixPath(name).parts
        if not parts or "\\" in name or ":" in name or name.startswith("/") or ".." in parts:
            raise UserError(f"{path}: refused, for its file {name!r:.80} would be written outside of the folder it is read into")
        if name != INDEX and (name not in files or name not in inside):
            raise UserError(f"{path}: refused, for its file {name!r:.80} is not in it once, as the index says")
    return {**index, "files": files}


def _check(path: Path, archive: zipfile.ZipFile, name: str, checksum: object) -> None:
    """Check that a file of an archive is what the index says.

    Raises:
        UserError: it is not, or cannot be read.
    """
    try:
        with archive.open(name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type] # a file to read bytes from is enough
    except zip_files.UNREADABLE as error:
        raise UserError(f"{path}: {name} cannot be read ({first_line(error)}); the archive is damaged\n    -> copy it again") from error
    if digest != checksum:
        raise UserError(f"{path}: {name} is not what the index says; the archive is damaged\n    -> copy it again")


def _extracted(path: Path, archive: zipfile.ZipFile, name: str, folder: Path) -> Path:
    """Write a file of an archive, which was checked, into a folder."""
    target = folder / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, _BLOCK)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {name} cannot be written to {folder} ({first_line(error)})\n    -> give a folder that can be") from error
    return target
