"""What a run notes of how it came about can be typed again, and its own outputs are no changes of the code."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from speechtrain.files import ignore_in_git
from speechtrain.tracking.provenance import run_tags


def git(*words: str) -> str:
    command = ["git", "-c", "user.name=me", "-c", "user.email=me@here", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_command_can_be_typed_again() -> None:
    overrides = ["-m", "model.dropout=0.1,0.2", "data.root=/a b", "hydra.sweeper.n_trials=3"]
    tags = run_tags(overrides)
    assert shlex.split(tags["overrides"]) == overrides
    assert shlex.split(tags["mlflow.source.name"])[3:] == overrides


def test_outputs_are_no_uncommitted_changes(tmp_path: Path) -> None:
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    for name in ("mlflow.db", "mlflow.db-wal", "mlartifacts/1/a.txt", "outputs/1/run.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert run_tags([])["git.dirty"] == "false"
    (tmp_path / "mine.py").touch()
    assert run_tags([])["git.dirty"] == "true"
    ignore_in_git(tmp_path / "outputs")
    assert "outputs" not in git("status", "--porcelain")


def test_changes_of_tracked_files_are_seen_whatever_their_folder_is_called_and_wherever_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = [tmp_path / name for name in ("alignments/model.py", "outputs/own.py", "top.py")]
    (tmp_path / "sub" / "alignments").mkdir(parents=True)
    for file in code:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    for start in (tmp_path, tmp_path / "sub"):
        monkeypatch.chdir(start)
        assert run_tags([])["git.dirty"] == "false"
        for file in code:
            file.write_text("changed")
            assert run_tags([])["git.dirty"] == "true", (start, file)
            file.write_text("")
        (tmp_path / "new.py").touch()
        assert run_tags([])["git.dirty"] == "true", start
        (tmp_path / "new.py").unlink()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub" / "alignments" / "model.py").touch()
    assert run_tags([])["git.dirty"] == "true"
