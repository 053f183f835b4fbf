"""What a run notes of how it came about can be typed again, and its own outputs are no changes of the code."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from speechtrain.files import ignore_in_git
from speechtrain.tracking.provenance import run_tags


def test_the_command_can_be_typed_again() -> None:
    overrides = ["-m", "model.dropout=0.1,0.2", "data.root=/a b", "hydra.sweeper.n_trials=3"]
    tags = run_tags(overrides)
    assert shlex.split(tags["overrides"]) == overrides
    assert shlex.split(tags["mlflow.source.name"])[3:] == overrides


def test_outputs_are_no_uncommitted_changes(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@here"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    for name in ("mlflow.db", "mlflow.db-wal", "mlartifacts/1/a.txt", "outputs/1/run.json", "alignments/words.ctm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert run_tags([])["git.dirty"] == "false"
    (tmp_path / "mine.py").touch()
    assert run_tags([])["git.dirty"] == "true"
    ignore_in_git(tmp_path / "outputs")
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    assert "outputs" not in status
