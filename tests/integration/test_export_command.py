"""Export of a trained model to other formats, each tried in its own runtime."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY
from use import here

import speechtrain
from speechtrain.errors import ConfigError, UserError
from speechtrain.inference.archive import read_index, stored_config


@pytest.mark.slow
def test_every_format_of_torch_is_tried_in_its_own_runtime(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("export", f"from={trained}", "format=[torchscript,pt2,onnx,archive]", "out=files") == 0
    out = capsys.readouterr().out
    names = {path.name for path in (tmp_path / "files").iterdir()}
    assert {"model.ts", "model.pt2", "model.onnx", "tdnn-run.zip"} <= names
    for name in ("model.ts", "model.pt2", "model.onnx"):
        facts = json.loads((tmp_path / f"files/{name}.json").read_text())
        assert facts["difference"] < 1e-3
        assert facts["vocabulary"][0] == ""
        assert facts["features"]["sample_rate"] == 8000
    assert re.search(r"^archive +[\d.]+ +[\d.]+", out, re.MULTILINE)


@pytest.mark.slow
def test_a_file_that_is_not_the_model_is_not_called_done(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from speechtrain.inference import convert, runtimes

    right = runtimes._OPEN["onnx"]
    converted = tmp_path / "converted.onnx"

    def convert_once(job: convert.ConversionJob) -> None:
        if not converted.exists():
            in_full(job)
            shutil.copy(job.path, converted)
        shutil.copy(converted, job.path)

    in_full = convert.convert
    monkeypatch.setattr(convert, "convert", convert_once)

    def wrong(path: Path) -> runtimes.Runner:
        run = right(path)
        return lambda features, lengths: (run(features, lengths)[0] + 0.1, run(features, lengths)[1])

    def shorter(path: Path) -> runtimes.Runner:
        run = right(path)
        return lambda features, lengths: (run(features, lengths)[0], run(features, lengths)[1] - 1)

    def broken(path: Path) -> runtimes.Runner:
        raise ValueError("no such operation")

    for opened, told in ((wrong, "they differ by"), (shorter, "have other lengths"), (broken, "no such operation")):
        monkeypatch.setitem(runtimes._OPEN, "onnx", opened)
        assert here("export", f"from={trained}", "format=onnx", "out=files", "utterances=1") == 1
        assert told in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "files").iterdir()] == ["bad_model.onnx"]


def test_a_converter_that_crashes_is_told(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speechtrain.backends.base import Conversion
    from speechtrain.inference.convert import ConversionJob, convert

    checkpoint = next((trained / "checkpoints").glob("best-*"))
    job = ConversionJob(checkpoint, stored_config(checkpoint)[0], "nonsense", tmp_path / "out/model.onnx", Conversion(80, 10), trust=False)
    with pytest.raises(UserError, match="nonsense: the converter failed"):
        convert(job)
    assert list((tmp_path / "out").iterdir()) == []
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    with pytest.raises(UserError, match="nonsense: the converter crashed with signal 11"):
        convert(job)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ConfigError, match="'tflite' is not available for a model of backend=torch"):
        here("export", f"from={trained}", "format=[tflite]")


def test_a_run_exports_when_it_is_done(command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = command(*TINY, "model=mlp", "trainer.epochs=1", "export.on_train_end=[archive]", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert {"run.json", "history.jsonl", "speechtrain.log"} < set(read_index(tmp_path / "run/exports/mlp-run.zip")["files"])
    refused = command(*TINY, "model=mlp", "export.on_train_end=[onx]")
    assert refused.returncode == 2
    assert "there is no format 'onx'" in refused.stderr


@pytest.mark.slow
def test_a_model_of_signals_is_evaluated_and_exported_and_has_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["data.train_size=12", "data.val_size=4", "data.test_size=4", "data.duration=1", "trainer.epochs=1", "tracking=[]"]
    cfg = speechtrain.compose(["experiment=signal_extraction", *sizes, "backend.threads=1"], output_dir=tmp_path / "run")
    metrics = speechtrain.train(cfg).metrics
    assert here("evaluate", "from=run", "report=false", "out=e") == 0
    found = json.loads((tmp_path / "e/evaluation.json").read_text())["decoders"]["model"]
    assert found["metrics"]["mse"] == pytest.approx(metrics["test/mse"], rel=1e-4)
    assert here("export", "from=run", "format=[onnx,archive]", "out=files") == 0
    assert (tmp_path / "files/model.onnx").is_file()
    with pytest.raises(UserError, match="takes no audio"):
        speechtrain.load("run")
    capsys.readouterr()
