"""One config means the same numbers on both backends, whatever engine Keras runs on.

The engine is fixed once a process: this file runs on TensorFlow, or on what SPEECHTRAIN_TEST_ENGINE says; see `test_keras_engines.py`.
"""

from __future__ import annotations

import importlib.util
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import thinned

if importlib.util.find_spec("keras") is None:  # importing it would choose its engine
    pytest.skip("needs the keras extra", allow_module_level=True)

from backend_setup import Recorder, Setup

from speechtrain import compose
from speechtrain.backends.keras.backend import KerasBackend
from speechtrain.backends.torch import losses as torch_losses
from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.config.build import build

ENGINE = os.environ.get("SPEECHTRAIN_TEST_ENGINE", "tensorflow")
BACKEND = KerasBackend(ENGINE, threads=1)

import keras  # noqa: E402
from keras import ops  # noqa: E402
from weights import copy_weights, gradient  # noqa: E402

from speechtrain.backends.keras import losses, optimizers  # noqa: E402
from speechtrain.backends.keras.layers import MaskedLengths  # noqa: E402

MODELS = [
    ["model=tdnn"],
    pytest.param(["model=tdnn", "model.dilations=[1,3]", "model.kernel_size=3", "model.stem_time_strides=[2,2]"], marks=pytest.mark.long),
    ["model=conformer", "model.n_layers=2"],
    pytest.param(["model=conformer", "model.n_layers=1", "model.subsampling=8", "model.kernel_size=7"], marks=pytest.mark.long),
    ["model=crdnn"],
    pytest.param(["model=crdnn", "model.rnn=lstm", "model.bidirectional=false"], marks=pytest.mark.long),
    ["model=quartznet"],
    pytest.param(["model=quartznet", "model.subsampling=3", "model.repeats=1", "model.kernel_sizes=[3,5,7]"], marks=pytest.mark.long),
    ["model=lstm"],
    pytest.param(["model=lstm", "model.stack=3", "model.chunk_frames=1", "model.layers=1"], marks=pytest.mark.long),
    ["model=mlp"],
    pytest.param(["model=mlp", "model.stack=3"], marks=pytest.mark.long),
]


def pair(options: list[str], input_size: int = 40) -> tuple[Any, Any]:
    """Both encoders of a config, with the same weights and running statistics that are not those of a fresh model."""
    first = build("model", compose([*options, "model.dropout=0"]).model, input_size=input_size)
    first.train()
    lengths = torch.tensor([61, 40])
    for _ in range(3):
        first(torch.randn(2, 61, input_size), lengths)
    second = build("model", compose([*options, "model.dropout=0", "backend=keras"]).model, input_size=input_size)
    second(ops.zeros((1, 48, input_size)), ops.convert_to_tensor(np.array([48], dtype=np.int32)))
    copy_weights(first, second)
    return first, second


@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
@pytest.mark.parametrize("options", thinned(MODELS, 2), ids=" ".join)
def test_a_model_with_the_torch_models_weights_gives_its_outputs(options: list[str], training: bool) -> None:
    torch.manual_seed(0)
    first, second = pair(options)
    lengths = np.array([61, 2, 24, 60, 37])
    features = np.random.default_rng(0).standard_normal((5, 61, 40)).astype(np.float32)
    features *= np.arange(61)[None, :, None] < lengths[:, None, None]
    expected, frames = first.train(training)(torch.from_numpy(features), torch.from_numpy(lengths))
    found, out_lengths = second(ops.convert_to_tensor(features), ops.convert_to_tensor(lengths.astype(np.int32)), training=training)
    np.testing.assert_array_equal(ops.convert_to_numpy(out_lengths), frames.numpy())
    np.testing.assert_array_equal(second.output_lengths(lengths), frames.numpy())
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected.detach().numpy(), atol=1e-4)
    assert (second.output_size, second.subsampling, second.receptive_field, second.causal) == (
        first.output_size,
        first.subsampling,
        first.receptive_field,
        first.causal,
    )


@pytest.mark.parametrize("options", [["model=tdnn", "model.stem_time_strides=[2,2]"], ["model=quartznet", "model.repeats=1"]], ids=" ".join)
def test_a_mask_in_place_of_lengths_changes_no_output(options: list[str]) -> None:
    _, model = pair(options)
    features = np.random.default_rng(0).standard_normal((1, 61, 40)).astype(np.float32)
    features[0, 44:] = 0
    expected, lengths = model(ops.convert_to_tensor(features), ops.convert_to_tensor(np.array([44], dtype=np.int32)))
    mask = (np.arange(61) < 44).astype(np.float32)[None]
    found, masked = model.call(ops.convert_to_tensor(features), MaskedLengths(ops.convert_to_tensor(mask)), training=False)
    inside = ops.convert_to_numpy(masked.inside(found.shape[1]))[0]
    np.testing.assert_array_equal(inside, np.arange(found.shape[1]) < int(lengths[0]))
    kept = slice(None, int(lengths[0]))
    np.testing.assert_allclose(ops.convert_to_numpy(found)[0, kept], ops.convert_to_numpy(expected)[0, kept], atol=1e-5)


@pytest.mark.parametrize("model", thinned(["tdnn", "conformer", "crdnn", "quartznet", "lstm", "mlp"], 3))
@pytest.mark.long
def test_no_two_weights_begin_with_the_same_numbers_and_all_within_torchs_bounds(tmp_path: Path, model: str) -> None:
    setups = [Setup(backend, tmp_path / backend.name, f"model={model}") for backend in (TorchBackend(threads=1), BACKEND)]
    first, second = [setup.build() for setup in setups]
    drawn = [ops.convert_to_numpy(weight).ravel() for weight in second.trainable_weights]
    drawn = [values for values in drawn if np.ptp(values) > 0]
    assert len({tuple(np.round(values[:4], 6)) for values in drawn}) == len(drawn)
    ratios = [np.round(values[:4] / np.abs(values).max(), 3) for values in drawn if values.size > 500]
    assert len({tuple(ratio) for ratio in ratios}) == len(ratios), "the same draw, scaled"
    spread = {name: float(weight.std()) for name, weight in first.named_parameters() if weight.dim() > 1}
    ours = sorted(float(ops.convert_to_numpy(weight).std()) for weight in second.trainable_weights if len(weight.shape) > 1)
    assert np.isclose(max(ours), max(spread.values()), rtol=0.2)


@pytest.mark.parametrize(
    "options", [["model=tdnn"], ["model=conformer", "model.n_layers=1"], ["model=quartznet"], ["model=crdnn"]], ids=" ".join
)
@pytest.mark.long
def test_padding_up_to_a_compiled_shape_changes_nothing_in_training_either(options: list[str]) -> None:
    _, model = pair(options)
    lengths = np.array([61, 24, 60], dtype=np.int32)
    features = np.random.default_rng(0).standard_normal((3, 61, 40)).astype(np.float32)
    features *= np.arange(61)[None, :, None] < lengths[:, None, None]
    padded = np.pad(features, ((0, 2), (0, 11), (0, 0)))
    exact, _ = model(ops.convert_to_tensor(features), ops.convert_to_tensor(lengths), training=True)
    more, _ = model(ops.convert_to_tensor(padded), ops.convert_to_tensor(np.pad(lengths, (0, 2))), training=True)
    for row, frames in enumerate(np.asarray(model.output_lengths(lengths))):
        np.testing.assert_allclose(ops.convert_to_numpy(more)[row, :frames], ops.convert_to_numpy(exact)[row, :frames], atol=2e-5)


@pytest.mark.parametrize("options", thinned([["model.stack=1"], ["model.stack=3"], ["model.layers=1", "model.stack=2"]], 3), ids=" ".join)
@pytest.mark.parametrize("backend", thinned(["torch", "keras"], 2))
def test_an_lstm_streams_what_it_gives_for_the_whole_utterance_whatever_the_chunks(backend: str, options: list[str]) -> None:
    first, second = pair(["model=lstm", *options])
    features = np.random.default_rng(0).standard_normal((2, 50, 40)).astype(np.float32)
    lengths = np.array([50, 50])
    for sizes in ([50], [1] * 50, [3, 0, 17, 1, 29], [49, 1]):
        edges = np.cumsum([0, *sizes])
        chunks = [features[:, start:end] for start, end in pairwise(edges)]
        if backend == "torch":
            first.eval()
            with torch.inference_mode():
                whole = first(torch.from_numpy(features), torch.from_numpy(lengths))[0].numpy()
                stream = first.stream()
                parts = [stream.push(torch.from_numpy(chunk)).numpy() for chunk in chunks] + [stream.finish().numpy()]
        else:
            whole = ops.convert_to_numpy(second(ops.convert_to_tensor(features), ops.convert_to_tensor(lengths.astype(np.int32)))[0])
            stream = second.stream()
            parts = [stream.push(chunk) for chunk in chunks] + [stream.finish()]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


@pytest.mark.parametrize(("chunk", "every", "reach"), thinned([(1, 1, 1), (4, 1, 4), (2, 3, 6), (5, None, 20)], 4))
def test_an_lstms_gradient_reaches_back_as_far_as_its_chunks_say(chunk: int, every: int | None, reach: int) -> None:
    given = f"model.detach_every={'null' if every is None else every}"
    first, second = pair(["model=lstm", "model.stack=1", "model.layers=1", f"model.chunk_frames={chunk}", given])
    features = np.random.default_rng(0).standard_normal((1, 20, 40)).astype(np.float32)
    lengths = np.array([20], dtype=np.int32)

    def last(x: Any) -> Any:
        return ops.sum(ops.square(second(x, ops.convert_to_tensor(lengths), training=True)[0][:, -1]))

    _, found = gradient(last, features)
    x = torch.tensor(features, requires_grad=True)
    first.train()(x, torch.from_numpy(lengths))[0][:, -1].square().sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(found, x.grad.numpy(), atol=1e-5)
    began = (19 // reach) * reach  # the last chunk that the state was cut before
    assert np.abs(found[0]).sum(1).nonzero()[0].min() == began


def ctc_case(sharpness: float) -> tuple[Any, ...]:
    """Usual rows, repeats, one too short for its repeats, one too short, one of exactly enough frames, no labels, no frames."""
    logits = np.random.default_rng(0).standard_normal((8, 12, 6)).astype(np.float32) * sharpness
    targets = np.zeros((8, 5), dtype=np.int32)
    for row, labels in enumerate([[1, 2, 3], [4, 4, 5], [1, 1, 1], [1, 2, 3, 4, 5], [2, 2, 3], [], [1], [5]]):
        targets[row, : len(labels)] = labels
    lengths = np.array([12, 9, 4, 3, 4, 7, 0, 1], dtype=np.int32)
    return logits, lengths, targets, np.array([3, 3, 3, 5, 3, 0, 1, 1], dtype=np.int32)


@pytest.mark.parametrize("sharpness", [3, 60], ids=["usual", "probabilities that vanish"])
@pytest.mark.parametrize("native", [False, True] if ENGINE == "tensorflow" else [False])
def test_ctc_and_its_gradient_are_those_of_torch_infeasible_rows_included(native: bool, sharpness: float) -> None:
    logits, lengths, targets, sizes = ctc_case(sharpness)
    options = {"native": True} if native else {}
    x = torch.tensor(logits, requires_grad=True)
    expected = torch_losses.ctc(x.log_softmax(-1), *(torch.from_numpy(each) for each in (lengths, targets, sizes)))
    expected.sum().backward()

    def total(given: Any) -> Any:
        return ops.sum(losses.ctc(ops.log_softmax(given), lengths, targets, sizes, **options))

    found = losses.ctc(ops.log_softmax(ops.convert_to_tensor(logits)), lengths, targets, sizes, **options)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected.detach().numpy(), atol=1e-4, rtol=1e-6)
    assert (ops.convert_to_numpy(found)[[2, 3, 6]] == 0).all()
    _, slope = gradient(total, logits)
    assert x.grad is not None
    np.testing.assert_allclose(slope, x.grad.numpy(), atol=1e-4)
    assert (slope[[2, 3, 6]] == 0).all()


def test_consistency_and_its_gradient_are_those_of_torch() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32)
    lengths = np.array([6, 3, 6, 3], dtype=np.int32)
    x = torch.tensor(logits, requires_grad=True)
    expected = torch_losses.consistency(x.log_softmax(-1), torch.from_numpy(lengths))
    expected.sum().backward()
    value, slope = gradient(lambda given: ops.sum(losses.consistency(ops.log_softmax(given), lengths)), logits)
    assert value == pytest.approx(float(expected.detach().sum()), abs=1e-5)
    assert x.grad is not None
    np.testing.assert_allclose(slope, x.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    thinned(
        [
            ["adamw"],
            ["adam", "optimizer.weight_decay=0.1"],
            ["sgd"],
            ["sgd", "optimizer.nesterov=false", "optimizer.weight_decay=0.1"],
            ["sgd", "optimizer.momentum=0", "optimizer.nesterov=false"],
            ["rmsprop"],
            ["rmsprop", "optimizer.momentum=0.9", "optimizer.weight_decay=0.1"],
        ],
        3,
    ),
    ids=" ".join,
)
def test_an_optimizer_takes_torchs_steps(options: list[str]) -> None:
    rng = np.random.default_rng(0)
    start = rng.standard_normal((4, 3)).astype(np.float32)
    given = [f"optimizer={options[0]}", *options[1:]]
    weight = torch.nn.Parameter(torch.tensor(start))
    first = build("optimizer", compose(given).optimizer, params=[weight])
    variable = keras.Variable(start)
    second = build("optimizer", compose([*given, "backend=keras"]).optimizer)
    optimizers.measured(second, None, by_norm=True, accumulate=1)
    for step in range(6):
        slope = (rng.standard_normal((4, 3)) * 10.0 ** rng.integers(-9, 2)).astype(np.float32)
        rate = 0.1 / (step + 1)
        first.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor(slope)
        first.step()
        if not second.built:
            second.build([variable])
        second.learning_rate = rate
        second.apply([ops.convert_to_tensor(slope)], [variable])
        np.testing.assert_allclose(ops.convert_to_numpy(variable.value), weight.detach().numpy(), atol=2e-6, rtol=2e-6)
    assert type(second).__name__ == type(first).__name__


SGD = ["optimizer=sgd", "optimizer.lr=1e-3"]
TRAINING = [
    (0.1, ["model=tdnn", "optimizer.lr=3e-4"]),  # Adam makes rounding errors of small gradients into whole steps, so these are small
    (
        5e-3,
        ["model=tdnn", "model.dilations=[1,2]", *SGD, "scheduler=plateau", "scheduler.patience=0", "trainer.gradient_clip_algorithm=value"],
    ),
    (1e-3, ["model=conformer", "model.n_layers=1", *SGD, "trainer.accumulate_grad_batches=4"]),
    (1e-3, ["model=crdnn", "model.rnn_layers=1", *SGD, "task.consistency=0.2", "scheduler=exponential"]),
    # each layer of these is in a model above, and each model is compared in test_a_model_with_the_torch_models_weights_gives_its_outputs
    pytest.param(1e-3, ["model=quartznet", "model.repeats=1", *SGD, "trainer.gradient_clip_val=null"], marks=pytest.mark.slow),
    pytest.param(1e-3, ["model=lstm", *SGD, "scheduler=step", "scheduler.step_epochs=1"], marks=pytest.mark.slow),
]


@pytest.mark.long
@pytest.mark.parametrize(("tolerance", "options"), thinned(TRAINING, 6))
def test_a_training_from_the_same_weights_gives_the_same_losses(tmp_path: Path, tolerance: float, options: list[str]) -> None:
    common = ["model.dropout=0", "trainer.epochs=2", "data.batch_seconds=12", *options]
    setups = [Setup(backend, tmp_path / backend.name, *common) for backend in (TorchBackend(threads=1), BACKEND)]
    models = [setup.build() for setup in setups]
    copy_weights(models[0], models[1])
    recorders = [Recorder(), Recorder()]
    for setup, model, recorder in zip(setups, models, recorders, strict=True):
        setup.train(model, recorder, views=2 if setup.task.consistency else 1)
    assert recorders[0].events == recorders[1].events
    for torch_metrics, keras_metrics in zip(recorders[0].metrics, recorders[1].metrics, strict=True):
        assert list(torch_metrics) == list(keras_metrics)
        for name in ("train/lr", "train/loss", "train/grad_norm", "val/loss"):
            assert keras_metrics[name] == pytest.approx(torch_metrics[name], rel=tolerance), name
