"""The hub of pretrained checkpoints: what a name on it looks like, and how files are fetched from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from speechtrain.config.extras import require
from speechtrain.errors import ConfigError, Problem, first_line
from speechtrain.files import is_folder, user_path

HUB = "hf://"
"""What the name of a checkpoint on the hub may begin with, where a path could be meant as well."""


_FETCHED_AS = re.compile(r"[\w.-]+/[\w.-]+")


def hub_name(folder: str) -> tuple[str, str] | None:
    """Return the name and the commit of a checkpoint by its folder in the hub's cache; None: it lies elsewhere."""
    found = re.search(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/(\w+)$", folder)
    return (f"{found[1]}/{found[2]}", found[3]) if found else None


def local_problem(name: str, key: str = "model.path") -> Problem | None:
    """Return what is wrong with a name that can only be that of a folder; None: it is there, or is a name on the hub."""
    if is_folder(user_path(name)):
        return None
    if not _FETCHED_AS.fullmatch(name.removeprefix(HUB)) or name.startswith("."):
        fix = "give the folder that save_pretrained wrote, or a name on the hub such as facebook/wav2vec2-base"
        return Problem(key, f"no such folder: {user_path(name).absolute()}", fix)
    return None


def language_of(name: str | Path) -> tuple[str, str | None]:
    """Divide the name of a checkpoint from that of a language behind it, as in `hf://facebook/mms-1b-all@deu`."""
    text = str(name)
    head, _, language = text.rpartition("@")
    return (head, language) if head and re.fullmatch(r"[\w-]+", language) and not is_folder(user_path(text)) else (text, None)


def fetched(name: str, revision: str | None, patterns: Sequence[str], key: str) -> Path:
    """Fetch files of a checkpoint from the hub, or find them where they were kept when they were fetched before; return their folder.

    Raises:
        ConfigError: they cannot be fetched.
    """
    require(f"{key}={name}", ("huggingface_hub",))
    from huggingface_hub import snapshot_download

    owner_and_name = name.removeprefix(HUB)
    try:
        return Path(snapshot_download(owner_and_name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # each version of huggingface_hub has errors of another HTTP client
        no_folder = "" if name.startswith(HUB) else f"there is no folder {name}, and "
        message = f"{no_folder}{owner_and_name} could not be fetched from the hub ({_reason(error, revision)})"
        fix = f"give a folder that holds the checkpoint, or fetch it where there is a network: {download_command(name, revision)}"
        raise ConfigError([Problem(key, message, fix)]) from error


def download_command(name: str, revision: str | None) -> str:
    """Return the command that fetches a checkpoint to where it is looked for."""
    return f"hf download {name.removeprefix(HUB)}{'' if revision is None else f' --revision {revision}'}"


def _reason(error: Exception, revision: str | None) -> str:
    """Return in a few words why the hub did not give a checkpoint."""
    from huggingface_hub import constants, errors

    reasons: dict[type[Exception], str] = {
        errors.GatedRepoError: "its owner asks for consent: give it on its page, then log in with hf auth login",
        errors.RepositoryNotFoundError: "it has no such checkpoint, or a private one, for which hf auth login logs in",
        errors.RevisionNotFoundError: f"it has no revision {revision}",
        errors.LocalEntryNotFoundError: f"it cannot be reached, and {constants.HF_HUB_CACHE} has no such checkpoint of that revision",
    }
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} has no such checkpoint of that revision"
    return next((reason for kind, reason in reasons.items() if isinstance(error, kind)), first_line(error, most=160))
