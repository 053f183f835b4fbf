"""The recipes for published corpora: each says what it promises, and trains on a folder of its corpus' real shape."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import checkpoints
import corpora
import pytest
from conftest import REPOSITORY

import speechtrain

LIBRISPEECH = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "test-clean")
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "tree")
TINY = ["model.size=tiny", "trainer.precision=32-true"]
RECIPES: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "librispeech_960": (lambda root: corpora.librispeech(root, LIBRISPEECH), TINY),
    "librispeech_100": (lambda root: corpora.librispeech(root, LIBRISPEECH), [*TINY, "model=conformer"]),
    "mini_librispeech": (corpora.librispeech, ["model.channels=16"]),
    "common_voice": (corpora.common_voice, [*TINY, "data.language=cy"]),
    "timit_phones": (corpora.timit, ["model.channels=16"]),
    "an4": (corpora.an4, ["model.channels=16"]),
    "ljspeech": (corpora.ljspeech, [*TINY, "model.subsampling=2", "data.split.val=20", "data.split.test=20"]),
    "speech_commands_12": (lambda root: corpora.speech_commands(root, COMMANDS), []),
    "speech_commands_35": (lambda root: corpora.speech_commands(root, COMMANDS), []),
}
"""Each recipe's corpus in miniature, and what makes its model small enough for a test."""
SHORT = [
    *("trainer.epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
    *("backend.threads=1", "tracking=[]", "report.enabled=false", "samples=0"),
]


ALIKE = ("librispeech_100", "mini_librispeech", "common_voice", "an4", "ljspeech", "speech_commands_12")
"""Recipes whose model, task and way of splitting others show as well: with `-m slow`."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in RECIPES])
def test_a_recipe_trains_some_batches_of_its_corpus(name: str, tmp_path: Path) -> None:
    make, small = RECIPES[name]
    root = make(tmp_path / "corpus")
    result = speechtrain.train(speechtrain.compose([f"experiment={name}", f"data.root={root}", *small, *SHORT]))
    assert result.metrics["data/skipped"] == result.metrics["data/infeasible"] == 0
    assert result.metrics["train/loss"] > 0
    assert result.metrics["train/grad_norm"] > 0
    assert result.checkpoint is not None
    assert result.checkpoint.stem.startswith("mean" if name in ("librispeech_960", "librispeech_100", "common_voice") else "best")


@pytest.mark.slow  # tests/unit/backends/test_pretrained_models.py fine-tunes every kind of checkpoint
@pytest.mark.parametrize(("name", "kind"), [("finetune_wav2vec2", "wav2vec2"), ("finetune_mms", "mms")])
def test_a_recipe_fine_tunes_a_checkpoint_for_some_batches(
    name: str, kind: str, corpus: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = corpus(["good day", "a good tree", "day", "tree"] * 3)
    path = checkpoints.make(kind, tmp_path / "checkpoint", head=kind == "mms")
    given = [f"data.root={root}", f"model.path={path}", "trainer.precision=32-true", "data.split.val=25", "data.split.test=25"]
    result = speechtrain.train(speechtrain.compose([f"experiment={name}", *given, *SHORT]))
    assert result.metrics["train/grad_norm"] > 0
    assert result.metrics["data/infeasible"] == 0


@pytest.mark.parametrize("name", [*RECIPES, "finetune_wav2vec2", "finetune_mms"])
def test_a_recipe_says_its_command_the_hardware_and_whether_it_was_measured(name: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    lines = (REPOSITORY / "conf" / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    assert f"python -m speechtrain experiment={name} data.root=DIR" in head
    assert re.search(r"Hardware: .*(time and score: not measured here|measured here: )", head, re.IGNORECASE)
    commands = [line.lstrip("# ").split(" # ")[0].strip() for line in lines if f"experiment={name} data.root=DIR" in line]
    for command in commands:
        words = [word.strip("\"'") for word in re.findall(r"\"[^\"]*\"|\S+", command)[3:]]
        speechtrain.compose([word.replace("data.root=DIR", f"data.root={tmp_path}") for word in words])
    table = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert f"`{name}`" in table
