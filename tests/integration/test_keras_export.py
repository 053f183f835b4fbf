"""Models of Keras for ONNX Runtime and LiteRT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

import speechtrain
from speechtrain.errors import UserError
from speechtrain.export import run
from speechtrain.inference.runtimes import open_exported

pytestmark = pytest.mark.long


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "formats"),
    [
        (["model=tdnn", "model.channels=32"], "onnx,tflite,tflite_int8,keras,archive"),
        pytest.param(["model=lstm", "model.hidden_size=32"], "onnx,tflite,tflite_int8", marks=pytest.mark.slow),
        pytest.param(["model=crdnn"], "onnx,tflite,tflite_int8", marks=pytest.mark.slow),
        pytest.param(["model=conformer"], "onnx,tflite", marks=pytest.mark.slow),
    ],
    ids=["tdnn", "lstm", "crdnn", "conformer"],
)
def test_a_model_of_keras_runs_elsewhere(model: list[str], formats: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = speechtrain.compose([*TINY, "backend=keras", *model, "trainer.epochs=2", "data.batch_size=8"], output_dir=tmp_path / "run")
    speechtrain.train(cfg)
    assert run([f"from={tmp_path / 'run'}", f"format=[{formats}]", "out=files", "representative=8", "tflite.input=int8"]) == 0
    capsys.readouterr()
    written = {path.name for path in (tmp_path / "files").iterdir()}
    assert {"model.onnx", "model.onnx.json"} <= written
    facts = json.loads((tmp_path / "files/model.tflite.json").read_text())
    assert facts["difference"] < 1e-3
    if "tflite_int8" in formats:
        if "tdnn" in model[0]:  # unrolled, the steps of recurrent layers are larger than their weights
            assert (tmp_path / "files/model_int8.tflite").stat().st_size < (tmp_path / "files/model.tflite").stat().st_size / 2
        assert facts["inputs"]["features"]["type"] == "float32"
        int8 = json.loads((tmp_path / "files/model_int8.tflite.json").read_text())
        assert np.isfinite(int8["difference"])
        assert int8["inputs"]["features"]["type"] == "int8"
        assert int8["inputs"]["features"]["scale"] > 0
        assert int8["inputs"]["lengths"]["type"] == "int32"
        assert int8["outputs"]["values"]["type"] == "float32"
        assert set(int8["metrics"]) == set(facts["metrics"])
    lite = open_exported("tflite", tmp_path / "files/model.tflite")
    with pytest.raises(UserError, match="export with frames=5000"):
        lite(np.zeros((1, 5000, 40), dtype=np.float32), np.array([5000]))
