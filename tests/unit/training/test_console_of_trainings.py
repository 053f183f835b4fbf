"""What a training prints: its config in short, a line an epoch that fits the terminal, and at its end what the next command needs."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest

import speechtrain
from speechtrain.backends.callbacks import Control
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.console import console, printing_to
from speechtrain.tracking.recorder import RunRecorder
from speechtrain.tracking.run_folder import write_run_file
from speechtrain.training.console import ConsoleProgress, print_config, print_whereabouts


@pytest.mark.parametrize(("run_ids", "told"), [({"mlflow": "3f2a91"}, "\nrun id      3f2a91\n"), ({}, "\nrun")])
def test_a_training_ends_with_the_id_that_its_run_has_in_mlflow(
    run_ids: dict[str, str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run_file(tmp_path, {"run_ids": run_ids})
    print_whereabouts(tmp_path, None, [], RunRecorder({}, tmp_path))
    printed = capsys.readouterr().out
    assert told in printed
    assert ("run id" in printed) == bool(run_ids)


def printed_config(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> str:
    print_config(ExperimentConfig.of(speechtrain.compose(list(words), output_dir=folder)))
    return capsys.readouterr().out


def test_a_config_is_shown_by_its_options_and_the_keys_that_differ_from_their_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("model=conformer", "model.size=small", "model.d_model=200", "optimizer.lr=1e-3", "data=synthetic", "seed=3", "samples=5")
    lines = [line.rstrip() for line in printed_config(capsys, tmp_path, *words).splitlines()]
    for line in ("data       synthetic", "model      conformer size=small d_model=200", "optimizer  adamw lr=0.001", "run        seed=3"):
        assert line in lines
    assert "all keys are in config.yaml" in lines
    assert len(lines) < 20


def test_a_key_that_must_be_given_and_a_class_of_the_users_own_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.jsonl").touch()
    own = (
        "model=custom",
        "model._target_=speechtrain.backends.torch.models.Mlp",
        "+model.hidden_sizes=[8]",
        "+model.stack=3",
        "+model.dropout=0.2",
    )
    shown = printed_config(capsys, tmp_path, "data=manifest", f"data.root={tmp_path}", *own)
    assert f"manifest root={tmp_path}" in " ".join(shown.split())
    assert "model      mlp hidden_sizes=[8] stack=3 dropout=0.2" in shown


def test_the_whole_config_is_shown_where_messages_for_debugging_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "speechtrain")
    assert "├── dilations: [1, 1, 2, 2]" in printed_config(capsys, tmp_path, "data=synthetic")


@pytest.mark.parametrize("width", [80, 200])
def test_the_line_of_an_epoch_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "_width", width)
    metrics = {"train/loss": 3.28994, "val/loss": 1.8368, "val/cer": 0.7133, "val/wer": 1.0, "train/lr": 5.99e-3}
    with printing_to(output):
        ConsoleProgress(names=("loss", "cer", "wer")).on_epoch_end(0, metrics, Control())
    (line,) = output.getvalue().splitlines()
    assert len(line) <= width
    assert (
        "loss 3.290  val 1.837  CER 71.33 %  WER 100.00 %" if width == 80 else "train/loss 3.2899  val/loss 1.8368  val/cer 71.33 %"
    ) in line
