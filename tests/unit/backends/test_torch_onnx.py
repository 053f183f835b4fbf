"""Every Torch model runs in ONNX Runtime and gives its own outputs there, whatever the length and the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from test_torch_models import encoder

from speechtrain.backends.torch.exports import to_onnx
from speechtrain.backends.torch.speech_model import SpeechModel
from speechtrain.tasks.base import Head

ONE = ["model.n_layers=1"]
ZIPFORMER = ["rates=[1,2]", "widths=[32,24]", "layers=[1,1]", "heads=[2,4]", "hidden=[64,32]", "kernel_sizes=[7,5]"]
MODELS = [
    ("tdnn", []),
    ("lstm", []),
    ("mlp", ["model.stack=3"]),
    ("conformer", ONE),
    ("conformer", [*ONE, "model.chunk_frames=3", "model.left_chunks=2"]),
    ("fastconformer", ONE),
    ("ebranchformer", ONE),
    ("zipformer", [f"model.{option}" for option in ZIPFORMER]),
    ("crdnn", []),
    ("jasper", ["model.dilations=[1,2]"]),
    ("quartznet", ["model.repeats=1"]),
]


def check_outputs(path: Path, model: SpeechModel, input_size: int, shapes: Sequence[tuple[int, int]], *, shorter: int) -> None:
    """What ONNX Runtime gives of a file is what the model gives, for batches of (rows, frames), each row shorter than the one before it."""
    session = onnxruntime.InferenceSession(path)
    for batch, frames in shapes:
        lengths = torch.tensor([frames - shorter * row for row in range(batch)])
        features = torch.randn(batch, frames, input_size) * (torch.arange(frames)[None, :] < lengths[:, None])[:, :, None]
        with torch.inference_mode():
            values, value_lengths = model(features, lengths)
        found, found_lengths = session.run(None, {"features": features.numpy(), "lengths": lengths.numpy()})
        assert found_lengths.tolist() == value_lengths.tolist()
        for row, length in enumerate(found_lengths):
            np.testing.assert_allclose(found[row, :length], values[row, :length], rtol=1e-5, atol=2e-5)


# the exporter takes 10 s and more for each of the others
@pytest.mark.parametrize(("name", "options"), [*MODELS[:3], *(pytest.param(*each, marks=pytest.mark.slow) for each in MODELS[3:])])
def test_a_model_gives_its_outputs_in_onnx_runtime(tmp_path: Path, name: str, options: list[str]) -> None:
    model = SpeechModel(encoder(name, options), Head(7)).train()
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter)
    path = tmp_path / "model.onnx"
    to_onnx(model, path, 40)
    assert model.training
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    check_outputs(path, model.eval(), 40, [(1, 50), (3, 77), (5, 200), (1, 9)], shorter=3)
