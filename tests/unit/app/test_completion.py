"""What a shell is offered while a line is typed; one test asks a real bash."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Complete = Callable[[str], set[str]]


@pytest.fixture
def complete(command: Callable[..., subprocess.CompletedProcess[str]]) -> Complete:
    """What is offered for the last word of a line."""

    def ask(line: str) -> set[str]:
        return set(command("-sc", "query=bash", COMP_LINE=f"speechtrain {line}").stdout.split())

    return ask


def test_groups_options_and_keys_of_a_training_are_completed(complete: Complete) -> None:
    assert {"model=tdnn", "model=conformer"} <= complete("model=")
    assert complete("model.cha") == {"model.channels="}
    assert complete("train model=conformer model.n_h") == {"model.n_heads="}


@pytest.mark.slow
def test_commands_are_completed_beside_groups(complete: Complete) -> None:
    assert complete("ev") == {"evaluate"}
    assert complete("mod") == {"model.", "model="}
    assert {"train", "transcribe", "tracking."} <= complete("tra")
    assert "evaluate" not in complete("model=tdnn ev")


@pytest.mark.slow
def test_the_words_of_a_command_are_its_own_keys_and_the_groups_it_takes(complete: Complete) -> None:
    assert complete("evaluate dec") == {"decoder.", "decoder="}
    assert complete("evaluate from=last decoder=beam decoder.lex") == {"decoder.lexicon="}
    assert complete("evaluate split=") == {"split=train", "split=val", "split=test"}
    assert complete("transcribe fr") == {"from="}
    offered = complete("evaluate ")
    assert {"from=", "n_trials=", "data=", "backend."} <= offered
    assert not {"source=", "model=", "trainer."} & offered
    assert complete("inspect data=manifest f") == {"from=", "files=", "features=", "features."}
    assert complete("sync ") == set()


def test_nothing_is_printed_where_the_words_before_cannot_be_read(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = command("-sc", "query=bash", COMP_LINE="speechtrain model=[1 model.")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_bash_completes_a_command_and_its_words(tmp_path: Path) -> None:
    script = """
    eval "$(speechtrain -sc install=bash)"
    offered() { COMP_LINE="$1" COMP_POINT=${#1} COMP_CWORD=$2; hydra_bash_completion; echo "${COMPREPLY[@]}"; }
    offered "speechtrain ev" 1
    offered "speechtrain evaluate spl" 2
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["evaluate", "split="], done.stderr
