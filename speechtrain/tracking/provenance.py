"""Records how a run came about: command, commit, uncommitted changes, versions and host."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from speechtrain.addresses import masked

_PACKAGES = (
    "speechtrain",
    "torch",
    "torchaudio",
    "lightning",
    "keras",
    "tensorflow-cpu",
    "tensorflow",
    "jax",
    "lhotse",
    "mlflow",
    "hydra-core",
    "numpy",
)


_OUTPUTS = ("mlflow.db*", "mlartifacts/**", "outputs/**", "multirun/**")
"""What runs and commands write by default into the folder they are started in, as git's patterns."""


def run_tags(overrides: Sequence[str]) -> dict[str, str]:
    """Return the tags of a run, under MLflow's names where it has them."""
    tags = {
        "mlflow.source.name": masked(shlex.join(["python", "-m", "speechtrain", *overrides])),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "cpu_count": str(os.cpu_count()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "overrides": masked(shlex.join(overrides)),
    }
    for package in _PACKAGES:
        try:
            tags[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit.strip()
        tags["git.branch"] = _git("rev-parse", "--abbrev-ref", "HEAD").strip()
        tags["git.dirty"] = str(_is_dirty()).lower()
    return tags


def _is_dirty() -> bool:
    """Return whether the working tree differs from the last commit: a tracked file was changed, or there is a new one that is no output."""
    outputs = [f":(exclude,glob){pattern}" for pattern in _OUTPUTS]
    new = _git("ls-files", "--others", "--exclude-standard", "--", ":(top)", *outputs)
    return bool(_git("status", "--porcelain", "--untracked-files=no").strip() or new.strip())


def git_diff() -> str:
    """Return the changes of tracked files since the last commit; empty if there are none, or no repository."""
    return _git("diff", "HEAD")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
