"""The graph with a mask in place of lengths, which is converted for microcontrollers, is compared with the model before that."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("keras") is None:  # importing it would choose its engine
    pytest.skip("needs the keras extra", allow_module_level=True)

from conftest import thinned

from speechtrain import compose
from speechtrain.backends.base import Conversion
from speechtrain.backends.keras.backend import KerasBackend
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.data.text.base import build_tokenizer
from speechtrain.errors import UserError
from speechtrain.tasks.build import build_task

BACKEND = KerasBackend("tensorflow", threads=1)

from speechtrain.backends.keras import exports  # noqa: E402

MODELS = [
    ["model=matchboxnet", "model.channels=[8,8,8]"],
    ["model=crdnn", "model.rnn_size=8", "model.rnn_layers=1", "model.conv_channels=[4,4]", "model.conv_time_strides=[2,1]"],
    ["model=tdnn", "model.channels=8"],
    ["model=quartznet", "model.channels=[8,8]", "model.kernel_sizes=[5,7]"],
    ["model=lstm", "model.hidden_size=8", "task.pool=last"],
    ["model=mlp", "model.hidden_sizes=[8]"],
]
FRAMES = 12


def classifier(options: list[str]) -> Any:
    cfg = ExperimentConfig.of(compose([*options, "task=classification", "backend=keras", "data=synthetic"]))
    task = build_task(cfg, tokenizer=build_tokenizer(cfg.tokenizer, vocabulary=["a", "b", "c"]), input_size=6)
    model = BACKEND.build(cfg.model, task, input_size=6, seed=1)
    rng = np.random.default_rng(0)
    for weight in model.head.weights:  # which begins with zeros
        weight.assign(rng.standard_normal(weight.shape))
    return model


def conversion() -> Conversion:
    rng = np.random.default_rng(1)
    return Conversion(6, FRAMES, [rng.standard_normal((1, length, 6)).astype(np.float32) for length in (12, 5, 9)])


@pytest.mark.parametrize("options", thinned(MODELS, 2), ids=" ".join)
def test_the_graph_with_a_mask_gives_the_models_probabilities(options: list[str]) -> None:
    call = exports.masked_call(classifier(options), conversion())
    values = call(np.zeros((1, FRAMES, 6), dtype=np.float32), np.ones((1, FRAMES), dtype=np.float32))["probabilities"].numpy()
    assert values.shape == (1, 3)


def test_a_graph_that_gives_other_probabilities_is_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(MODELS[0])
    monkeypatch.setitem(exports._POOLS, "mean", lambda frames, inside: frames[:, 0])
    with pytest.raises(UserError, match=r"with a mask in place of lengths it gives probabilities that differ by 0\.\d+, 0\.001 is allowed"):
        exports.masked_call(model, conversion())
