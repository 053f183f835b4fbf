"""What goes on when a launcher starts a command again."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from speechtrain.app.launch import lead
from speechtrain.errors import ConfigError, UserError
from speechtrain.processes.launch_environment import Launch, note_path, note_run

LAUNCH = Launch("torchrun", 0, 1, 0, 0, True, "torchrun-mine", "localhost", 1, "mine", restarts=True)
TYPED = ["model=mlp", "data.batch_seconds=60"]


def begin_and_fail(launch: Launch, typed: list[str], run: Path) -> None:
    """Begin a run in a folder by a launch, and end before it is finished."""
    with suppress(ZeroDivisionError), lead(launch, typed):
        note_run(run)
        raise ZeroDivisionError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that the launch has begun and not finished."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("speechtrain.app.launch.end_with_parent", lambda: None)
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    begin_and_fail(LAUNCH, TYPED, run)
    return run


def test_the_same_command_goes_on_with_its_run(folder: Path) -> None:
    with lead(LAUNCH, TYPED) as arguments:
        assert arguments == [f"resume={folder}"]


def test_another_command_of_the_same_name_is_refused_with_what_differs() -> None:
    with (
        pytest.raises(UserError, match=r"was begun with data.batch_seconds=60, and is to go on with data.batch_seconds=30\n +-> "),
        lead(LAUNCH, ["model=mlp", "data.batch_seconds=30"]),
    ):
        pass


def test_what_is_typed_to_be_gone_on_with_is(folder: Path) -> None:
    typed = [f"resume={folder}", "data.batch_seconds=30"]
    with lead(LAUNCH, typed) as arguments:
        assert arguments == typed


def test_a_run_whose_folder_was_removed_is_begun_anew(folder: Path) -> None:
    folder.rename(folder.with_name("gone"))
    with lead(LAUNCH, TYPED) as arguments:
        assert arguments == TYPED


def test_a_note_has_no_secrets(folder: Path) -> None:
    begin_and_fail(replace(LAUNCH, key="other"), ["tracking.mlflow.password=wxyz"], folder)
    assert "wxyz" not in note_path("other").read_text()
    assert json.loads(note_path("other").read_text())["folder"] == str(folder)


def test_a_sweep_of_one_process_begins_without_a_note(folder: Path) -> None:
    begin_and_fail(replace(LAUNCH, key="sweep"), ["-m", "seed=1,2"], folder)
    assert not note_path("sweep").exists()


def test_a_sweep_of_several_processes_is_refused_before_any_is_waited_for() -> None:
    with pytest.raises(ConfigError, match="asks for a sweep"), lead(replace(LAUNCH, count=2), ["-m", "seed=1,2"]):
        pass
