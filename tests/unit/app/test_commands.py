"""`speechtrain COMMAND`: which command starts, and what is said where there is no such one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import speechtrain
from speechtrain.app.commands import COMMANDS, named_command, summary
from speechtrain.errors import UserError

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_a_mistyped_command_is_answered_with_the_nearest_one(command: Command) -> None:
    done = command("evalute", "from=last")
    assert done.returncode == 2
    assert "there is no command 'evalute'\n    -> did you mean 'evaluate'?" in done.stderr
    with pytest.raises(UserError, match="did you mean 'compare'"):
        named_command(["comprae"])


@pytest.mark.parametrize("arguments", [[], ["model=tdnn"], ["-m", "seed=1,2"], ["~model"], ["+trainer.x=1"], ["train", "model=tdnn"]])
def test_a_line_that_begins_with_no_command_trains(arguments: list[str]) -> None:
    assert named_command(arguments) == "train"


def test_train_may_be_written_and_a_mistake_behind_it_is_told_as_without(command: Command) -> None:
    with_word, without = command("train", "model.chanels=3"), command("model.chanels=3")
    assert (with_word.returncode, with_word.stderr) == (without.returncode, without.stderr) == (2, with_word.stderr)
    assert "did you mean 'model.channels'" in with_word.stderr


def test_a_command_is_the_module_of_its_name(command: Command) -> None:
    done = command("transcribe", "nothere.wav")
    assert (done.returncode, done.stdout) == (2, "")
    assert "files: there is no nothere.wav" in done.stderr
    told = command("evaluate", "--help").stdout
    assert told.startswith("`speechtrain evaluate`: measure how good a trained model is")
    assert "speechtrain evaluate from=last decoder=[greedy,beam]" in told


def test_help_lists_every_command_with_what_it_does(command: Command) -> None:
    told = command("--help").stdout
    for name in COMMANDS:
        assert summary(name).rstrip(".") in told
        assert len(summary(name).split()) > 2


def test_the_version_is_that_of_the_project_wherever_it_is_asked_for(command: Command) -> None:
    version = speechtrain.__version__
    words = [["--version"], ["evaluate", "--version"], ["train", "--version"]]
    assert [command(*arguments).stdout for arguments in words] == [f"speechtrain {version}\n"] * 3
    module = subprocess.run([sys.executable, "-m", "speechtrain.sync", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout == f"speechtrain {version}\n"


def test_types_are_announced() -> None:
    assert (Path(speechtrain.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize(
    "words", [["speechtrain", "--help"], ["speechtrain", "--version"], ["speechtrain.compare", "--help"]], ids=" ".join
)
def test_an_output_on_a_full_disk_is_told(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "this output goes to: cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_trial_that_is_none_is_told(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHTRAIN_TRIAL", "x")
    done = command("data=synthetic")
    assert done.returncode == 2
    assert "SPEECHTRAIN_TRIAL: names no trial of a sweep, received 'x'" in done.stderr
