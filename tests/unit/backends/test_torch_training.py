"""What the Torch backend's training can do besides the contract."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance import Recorder, Setup
from conftest import TINY
from omegaconf import OmegaConf
from torch import nn

import speechtrain
from speechtrain import compose
from speechtrain.backends.base import Backend
from speechtrain.backends.callbacks import Callback
from speechtrain.backends.failures import NonFiniteLossError, OutOfMemoryError
from speechtrain.backends.schedules import round_up
from speechtrain.backends.torch import losses, lr_finder, ops
from speechtrain.backends.torch.averaging import MovingAverage
from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.backends.torch.encoder import Stack, stacks_of
from speechtrain.backends.torch.lightning_module import TrainingModule
from speechtrain.errors import ConfigError, RunError, UserError
from speechtrain.tracking.run_folder import write_run_file
from speechtrain.training.batch_size import find_batch_seconds


@pytest.fixture
def backend() -> Backend:
    return TorchBackend(threads=1)


def spoil(setup: Setup, batches: set[int]) -> Any:
    """The training loader, with NaN in its batches of those numbers, counted over all epochs."""
    train = setup.data.loader("train", shuffle=True)
    assert train is not None
    inner = type(train).__iter__
    seen = iter(range(10**6))

    class Spoilt(type(train)):  # type: ignore[misc]
        def __iter__(self) -> Any:
            for batch in inner(self):
                if next(seen) in batches:
                    batch.features[0] = np.nan
                yield batch

    train.__class__ = Spoilt
    return train


def weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def test_a_step_whose_gradient_is_not_finite_is_left_out_and_counted(
    backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(backend, tmp_path, "model=tdnn", "trainer.epochs=2", "data.batch_size=4", "trainer.max_skipped_steps=1")
    recorder, model = Recorder(), setup.build()
    backend.train(model, spoil(setup, {1, 4}), setup.data.loader("val"), setup.task, setup.plan(), [recorder])
    assert recorder.metrics[0]["train/skipped_steps"] == 2
    assert "train/skipped_steps" not in recorder.metrics[1]
    assert all(np.isfinite(list(metrics.values())).all() for metrics in recorder.metrics)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert caplog.text.count("a gradient is not finite, on the batch of train-") == 1


def test_too_many_such_steps_in_a_row_end_the_run(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "trainer.epochs=2", "data.batch_size=4", "trainer.max_skipped_steps=2")
    with pytest.raises(NonFiniteLossError) as caught:
        backend.train(setup.build(), spoil(setup, {1, 3, 4, 5}), None, setup.task, setup.plan(), ())
    assert set(caught.value.ids) == set(np.load(tmp_path / "bad_batch.npz")["ids"])


def test_a_skipped_step_changes_no_weight(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=tdnn", "trainer.epochs=1", "data.batch_size=4", "trainer.max_skipped_steps=99")
    model = setup.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteLossError):  # at the end of the epoch
        backend.train(model, spoil(setup, set(range(99))), None, setup.task, setup.plan(), ())
    after = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_the_moving_average_is_that_of_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 4.0)
    average = MovingAverage(model, 0.2)
    nn.init.constant_(model.weight, 8.0)
    average.update()  # min(0.2, 2 / 11)
    nn.init.constant_(model.weight, 0.0)
    average.update()  # min(0.2, 3 / 12)
    expected = 0.2 * (4 * 2 / 11 + 8 * 9 / 11)
    assert average.weights["weight"].item() == pytest.approx(expected)
    average.swap()
    assert model.weight.item() == pytest.approx(expected)
    average.swap()
    assert model.weight.item() == 0


def test_validation_checkpoints_and_the_model_have_the_average_and_a_resumed_run_goes_on_with_the_weights(
    backend: Backend, tmp_path: Path
) -> None:
    options = ["model=tdnn", "trainer.epochs=4", "data.batch_size=4", "trainer.ema_decay=0.9"]
    whole, resumed = Recorder(), Recorder()
    one = Setup(backend, tmp_path / "one", *options)
    averaged = one.build()
    one.train(averaged, whole)
    stored = torch.load(tmp_path / "one/checkpoints/last.ckpt", weights_only=True)
    for name, value in averaged.state_dict().items():
        assert torch.equal(stored["state_dict"][f"model.{name}"], value)
    assert not torch.equal(stored["trained"]["model.head.weight"], averaged.head.weight)
    again = one.build()
    backend.load(again, tmp_path / "one/checkpoints/last.ckpt")
    assert one.measure(again, "val")["val/loss"] == pytest.approx(whole.metrics[-1]["val/loss"])
    two = Setup(backend, tmp_path / "two", *options)
    with pytest.raises(KeyboardInterrupt):
        two.train(two.build(), Recorder(interrupt_in=2))
    two.change({"resume": str(tmp_path / "two")})
    continued = two.build()
    two.train(continued, resumed)
    assert resumed.metrics == whole.metrics[2:]
    assert torch.equal(continued.head.weight, averaged.head.weight)


def test_the_mean_of_the_last_checkpoints_is_kept(backend: Backend, tmp_path: Path) -> None:
    options = ["model=tdnn", "trainer.epochs=4", "trainer.average_last=2", "trainer.test_checkpoint=mean"]
    setup = Setup(backend, tmp_path, *options, "trainer.checkpoint.every_n_epochs=1")
    result = setup.train(setup.build())
    folder = tmp_path / "checkpoints"
    assert result.mean_checkpoint == folder / "mean.ckpt"
    mean, third, fourth = (weights(folder / f"{name}.ckpt") for name in ("mean", "epoch=003", "epoch=004"))
    for name, value in mean.items():
        wanted = (third[name] + fourth[name]) / 2 if value.is_floating_point() else fourth[name]
        torch.testing.assert_close(value, wanted)
    assert sorted(path.name for path in folder.glob("recent*")) == ["recent-epoch=003.ckpt", "recent-epoch=004.ckpt"]
    backend.load(setup.build(), result.mean_checkpoint)


def test_the_mean_is_tested_only_where_weights_are_averaged() -> None:
    with pytest.raises(ConfigError, match=r"set trainer\.average_last=5"):
        compose(["trainer.test_checkpoint=mean"])


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_utterances_pass_by_layers_at_random_and_in_training_only() -> None:
    torch.manual_seed(0)
    stack = Stack((Twice() for _ in range(4)), 3)
    stack.layer_dropout = 0.5
    rows = stack(torch.ones(2000, 1, 3))[:, 0]
    assert torch.equal(rows[:, 0], rows[:, 2])
    passed = 4 - rows[:, 0].log2()
    assert passed.mean().item() == pytest.approx(2, abs=0.1)
    assert set(passed.tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(stack.eval()(torch.ones(5, 1, 3)), 16 * torch.ones(5, 1, 3))


@pytest.mark.parametrize("model", ["tdnn", "conformer"])
def test_the_loss_in_the_middle_goes_through_the_same_head(backend: Backend, tmp_path: Path, model: str) -> None:
    options = [f"model={model}", "model.dropout=0", "trainer.layer_dropout=0"]
    setup = Setup(backend, tmp_path, *options, "task.intermediate=0.25")
    built = setup.build()
    nn.init.normal_(built.head.weight)
    built.tap()
    loader = setup.data.loader("train")
    assert loader is not None
    batch = next(iter(loader))
    module = TrainingModule(built, setup.task, setup.plan(), (), loader)
    built.train()
    _, values, _ = module.batch_loss(batch, module.device)
    stack = built._tapped[0]
    middle = stack.tapped
    assert middle is not None
    assert middle.shape == (len(batch.ids), values.shape[1], built.encoder.output_size)
    stack.taps = False
    whole = list(stack)
    nn.ModuleList.__init__(stack, whole[: (len(whole) + 1) // 2])  # the encoder ends there
    torch.testing.assert_close(module.batch_loss(batch, module.device)[1], built._values(middle))


@pytest.mark.parametrize("model", ["mlp", "quartznet"])
def test_a_model_without_such_a_middle_refuses(backend: Backend, tmp_path: Path, model: str) -> None:
    setup = Setup(backend, tmp_path, f"model={model}", "task.intermediate=0.3")
    with pytest.raises(ConfigError, match="needs a middle of the encoder"):
        setup.train(setup.build())


def test_both_losses_are_trained_on_with_their_shares_and_only_the_last_is_reported(backend: Backend, tmp_path: Path) -> None:
    options = ["model=tdnn", "model.dropout=0", "trainer.max_steps=1", "trainer.gradient_clip_val=null"]
    norms, reported = {}, {}
    for share in (0, 0.25, 0.5):
        setup = Setup(backend, tmp_path / str(share), *options, f"task.intermediate={share}")
        recorder = Recorder()
        setup.train(setup.build(), recorder)
        norms[share], reported[share] = recorder.metrics[0]["train/grad_norm"], recorder.metrics[0]["train/loss"]
    assert reported[0.25] == pytest.approx(reported[0], rel=1e-5)
    assert norms[0.25] != pytest.approx(norms[0], rel=1e-3)
    assert norms[0.5] != pytest.approx(norms[0.25], rel=1e-3)


def test_label_smoothing_adds_the_divergence_from_equal_probabilities(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "task.label_smoothing=0.1")
    torch.manual_seed(0)
    values = torch.randn(3, 6, 4).log_softmax(-1)
    lengths = torch.tensor([6, 4, 1])
    ctc = losses.ctc(values, lengths, torch.tensor([[1, 2], [3, 3], [1, 2]]), torch.tensor([2, 2, 2]))
    found = setup.task.regularised(ops, ctc, values, lengths)
    for row, length in enumerate(lengths[:2]):
        divergence = sum(-values[row, frame].mean() for frame in range(length))
        torch.testing.assert_close(found[row], 0.9 * ctc[row] + 0.1 * divergence)
    assert found[2] == ctc[2] == 0  # cannot be aligned


@pytest.mark.parametrize("model", ["conformer", "ebranchformer", "zipformer", "tdnn"])
def test_gradient_checkpointing_changes_no_number(backend: Backend, tmp_path: Path, model: str) -> None:
    found = {}
    for checkpointing in (False, True):
        options = [f"model={model}", "trainer.max_steps=3", "trainer.layer_dropout=0.2", f"trainer.gradient_checkpointing={checkpointing}"]
        setup = Setup(backend, tmp_path / str(checkpointing), *options)
        recorder, built = Recorder(), setup.build()
        setup.train(built, recorder)
        assert all(stack.checkpointing == checkpointing for stack in stacks_of(built.encoder))
        found[checkpointing] = recorder.metrics
    for plain, again in zip(found[False], found[True], strict=True):
        assert again == pytest.approx(plain, rel=1e-5)


def test_gradient_checkpointing_keeps_only_what_goes_into_a_layer() -> None:
    kept = {}
    for checkpointing in (False, True):
        stack = Stack((nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 8)) for _ in range(3)), 8)
        stack.checkpointing = checkpointing
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: (sizes.append(tensor.numel()), tensor)[1], lambda tensor: tensor
        ):  # type: ignore[misc]
            stack(torch.randn(10, 4, 8, requires_grad=True))
        kept[checkpointing] = sum(sizes)
    assert kept[True] < kept[False] / 4


@pytest.mark.parametrize("model", ["crdnn", "ebranchformer", "fastconformer", "lstm", "quartznet", "tdnn", "wav2vec2", "zipformer"])
def test_every_weight_has_a_dimension_that_can_be_divided_between_devices(backend: Backend, tmp_path: Path, model: str) -> None:
    options = ["features=waveform"] if model == "wav2vec2" else []
    built = Setup(backend, tmp_path, f"model={model}", *options).build()
    assert not [name for name, parameter in built.named_parameters() if parameter.ndim == 0]


def test_a_weight_that_cannot_be_divided_is_named(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "trainer.strategy=fsdp", "trainer.devices=2")
    model = setup.build()
    model.encoder.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(ConfigError, match=r"trainer.strategy: is fsdp, and encoder.scale is a single number"):
        setup.train(model)


class Greedy(nn.Module):
    """Stands in front of a model and wants more memory than there is for long batches."""

    def __init__(self, encoder: nn.Module, frames: int) -> None:
        super().__init__()
        self.inner, self.frames = encoder, frames
        self.output_size, self.subsampling = encoder.output_size, encoder.subsampling

    def output_lengths(self, lengths: torch.Tensor) -> Any:
        return self.inner.output_lengths(lengths)  # type: ignore[operator]

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        if features.shape[0] * features.shape[1] >= self.frames:
            torch.empty(2**52)
        return self.inner(features, lengths)


def test_the_largest_batch_is_tried_first_and_one_that_does_not_fit_is_named(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "data.batch_seconds=6", "trainer.try_largest=true")
    train = setup.data.loader("train", shuffle=True)
    assert train is not None
    largest = train.largest()
    size = largest.features.shape[0] * largest.features.shape[1]
    assert size >= max(batch.features.shape[0] * batch.features.shape[1] for batch in train)
    model, recorder = setup.build(), Recorder()
    model.encoder = Greedy(model.encoder, size)
    with pytest.raises(OutOfMemoryError, match=r"does not fit into memory") as caught:
        setup.train(model, recorder)
    assert caught.value.ids == largest.ids
    assert all(name in str(caught.value) for name in largest.ids[:8])
    assert f"data.batch_seconds={round(largest.seconds / 2)}" in str(caught.value)
    assert not recorder.metrics
    assert not [event for event in recorder.events if event.startswith("batch")]


def test_a_batch_that_does_not_fit_later_is_named_as_well(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "data.batch_seconds=6")
    train = setup.data.loader("train", shuffle=True)
    assert train is not None
    sizes = {batch.features.shape[0] * batch.features.shape[1]: batch.ids for batch in train}
    model = setup.build()
    model.encoder = Greedy(model.encoder, max(sizes))
    with pytest.raises(OutOfMemoryError) as caught:
        setup.train(model, Recorder())
    assert caught.value.ids == sizes[max(sizes)]


def test_trying_the_largest_batch_changes_no_number(backend: Backend, tmp_path: Path) -> None:
    found = []
    for wanted in ("true", "false"):
        setup = Setup(backend, tmp_path / wanted, "model=tdnn", "trainer.epochs=2", f"trainer.try_largest={wanted}")
        recorder, model = Recorder(), setup.build()
        setup.train(model, recorder)
        found.append((recorder.metrics, setup.measure(model, "val")["val/loss"]))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("mlp", []),
        pytest.param("lstm", ["model.dropout=0"], marks=pytest.mark.long),
        pytest.param("conformer", ["model.n_layers=2", "model.dropout=0", "task.intermediate=0.3"], marks=pytest.mark.slow),
    ],
)
def test_a_compiled_step_has_the_numbers_of_one_that_is_not_and_few_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, options: list[str]
) -> None:
    shapes: set[Any] = set()
    graphs = 0

    def traced(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        shapes.update(tuple(each.shape) for each in inputs if isinstance(each, torch.Tensor) and each.ndim == 3)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=traced))
    torch.compiler.reset()
    found = []
    for wanted in (False, True):
        backend = TorchBackend(threads=1, compile=wanted)
        common = ["model.dropout=0", "trainer.epochs=2", "data.batch_size=6", f"model={model}", *options]
        setup = Setup(backend, tmp_path / str(wanted), *common)
        recorder, built = Recorder(), setup.build()
        for norm in built.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.eval()
                norm.train = lambda *_: None  # its statistics see what is added
        setup.train(built, recorder)
        found.append([epoch["train/loss"] for epoch in recorder.metrics] + [setup.measure(built, "val")["val/loss"]])
        again = setup.build()
        backend.load(again, tmp_path / str(wanted) / "checkpoints" / "last.ckpt")
        assert all(torch.equal(value, built.state_dict()[name]) for name, value in again.state_dict().items())
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    if stacks_of(built.encoder):
        assert 1 <= graphs <= 8  # one for all layers, those for changing sizes and for one row, with padding and without
        return
    features = {shape for shape in shapes if shape[2] == 40}
    assert features
    assert all(rows == round_up(rows, 4) and frames == round_up(frames, 4) for rows, frames, _ in features)


def test_batches_are_made_as_long_as_it_pays_and_fits_into_memory(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "data.train_size=400", "trainer.batch_seconds=auto")
    model = setup.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pays_up_to, fits_up_to = 60.0, 1e9

    def step_seconds(model: Any, batch: Any, task: Any, trainer: Any) -> float:
        TorchBackend.step_seconds(backend, model, batch, task, trainer)
        if batch.seconds > fits_up_to:
            raise OutOfMemoryError(batch, "out of memory")
        return max(batch.seconds, pays_up_to) / 100

    monkeypatch.setattr(backend, "step_seconds", step_seconds)
    trainer = setup.plan().trainer

    def found() -> float:
        return find_batch_seconds(backend, model, setup.data, setup.task, trainer)

    with caplog.at_level(logging.INFO):
        assert found() == 60
    assert "data.batch_seconds=60 found" in caplog.text
    fits_up_to = 32
    assert found() == 30
    fits_up_to = 5
    with pytest.raises(OutOfMemoryError):
        found()
    pays_up_to, fits_up_to = 1e9, 1e9
    assert found() == 60  # each of the ten buckets is one batch, so that larger ones hold no more
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match=r"trainer.devices is 2"):
        find_batch_seconds(backend, model, setup.data, setup.task, replace(trainer, devices=2))


def test_the_size_of_batches_that_was_found_stays_that_of_the_run(tmp_path: Path) -> None:
    options = [*TINY, "model=mlp", "trainer.batch_seconds=auto", "data.batch_size=100"]
    result = speechtrain.train(compose([*options, "trainer.epochs=1"]))
    found = result.metrics["data/batch_seconds"]
    assert found >= 15
    assert OmegaConf.load(result.folder / "config.yaml").data.batch_seconds == found
    assert speechtrain.load(str(result.folder)).cfg.data.batch_seconds == found
    write_run_file(result.folder, {"batch_seconds": 7.0})
    resumed = speechtrain.train(compose([*options, "trainer.epochs=2", f"resume={result.folder}"], output_dir=result.folder))
    assert resumed.metrics["data/batch_seconds"] == 7
    with pytest.raises(ConfigError, match="the Keras backend cannot measure a step"):
        speechtrain.train(compose([*options, "backend=keras"]))


def test_a_learning_rate_is_found_before_training_and_nothing_else_is_changed(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=tdnn", "trainer.epochs=2", "trainer.find_lr=true", "optimizer.lr=1e-9", "scheduler=constant")
    model = setup.build()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}

    class Beginning(Recorder):
        def on_train_start(self, total_epochs: int, first_epoch: int) -> None:
            assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())

    recorder = Beginning()
    setup.train(model, recorder)
    found = recorder.metrics[0]["train/lr"]
    assert 1e-4 < found < 1e-1
    curve = json.loads((tmp_path / "lr_finder.json").read_text(encoding="utf-8"))
    assert found in [point["lr"] for point in curve]
    assert [event for event in recorder.events if event.startswith("batch 0.0")]
    setup.change({"resume": str(tmp_path)})
    setup.change({"trainer.epochs": 3})
    resumed = Recorder()
    setup.train(setup.build(), resumed)
    assert resumed.metrics[0]["train/lr"] == found


def test_the_steepest_rate_is_where_the_loss_falls_fastest_and_a_loss_that_never_falls_is_said() -> None:
    rates = [10 ** (-6 + index / 10) for index in range(60)]
    losses_ = [3 - 2 / (1 + np.exp(-(index - 35) / 2)) for index in range(60)]
    assert lr_finder.steepest(list(zip(rates, losses_, strict=True))) == rates[35]
    with pytest.raises(RunError, match=r"trainer\.find_lr=false"):
        lr_finder.steepest([(rate, 1.0 + index) for index, rate in enumerate(rates)])


def test_weights_alone_are_no_checkpoint_to_go_on_from(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "trainer.epochs=2", "trainer.average_last=2")
    result = setup.train(setup.build())
    setup.change({"resume": str(result.mean_checkpoint)})
    with pytest.raises(UserError, match=r"mean\.ckpt is not a checkpoint that can be read"):
        setup.train(setup.build())


def test_a_missing_key_that_is_no_part_of_a_checkpoint_is_not_taken_for_a_damaged_one(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "trainer.epochs=2")
    setup.train(setup.build())
    setup.change({"resume": str(tmp_path), "trainer.epochs": 3})

    class Broken(Recorder):
        def on_epoch_end(self, *given: Any) -> None:
            raise KeyError("something else")

    with pytest.raises(KeyError, match="something else"):
        setup.train(setup.build(), Broken())


def test_an_epoch_without_a_good_step_ends_the_run(backend: Backend, tmp_path: Path) -> None:
    options = [
        "model=tdnn",
        "trainer.epochs=3",
        "optimizer=sgd",
        "optimizer.lr=1e30",
        "trainer.gradient_clip_val=null",
        "scheduler=constant",
    ]
    setup = Setup(backend, tmp_path, *options, "trainer.max_skipped_steps=999")
    recorder = Recorder()
    with pytest.raises(NonFiniteLossError, match="epoch 2"):
        setup.train(setup.build(), recorder)
    assert len(recorder.metrics) == 1


def test_a_model_larger_than_its_file_is_refused_before_it_is_built(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(
        backend,
        tmp_path,
        "model=tdnn",
        "model.channels=8",
        "model.stem_channels=[4]",
        "model.stem_time_strides=[2]",
        "model.dilations=[1,2]",
    )
    backend.save(setup.build(), tmp_path / "a.ckpt", {})
    sizes = {"input_size": setup.data.features.size}
    assert backend.restore(setup.cfg.model, setup.task, tmp_path / "a.ckpt", **sizes) is not None
    for changes, told in (
        ({"channels": 10**6}, r"has the shape \(.*8.*\), and its config asks for \(.*1000000"),
        ({"dilations": [1] * 1000}, r"model\.dilations of its config is \[1, 1.*and it has \d+ weights"),
        ({"dilations": [1, 2, 4]}, "it has no weight"),
        ({"dilations": [1]}, "its config has no weight"),
    ):
        with pytest.raises(UserError, match=rf"a\.ckpt holds another model: .*{told}"):
            backend.restore({**setup.cfg.model, **changes}, setup.task, tmp_path / "a.ckpt", **sizes)
    for layers in ({"n_layers": 10**9}, {"repeats": 10**9}, {"layers": [1, 10**9]}):
        with pytest.raises(UserError, match=r"of its config is \[?1"):
            backend.restore({**setup.cfg.model, **layers}, setup.task, tmp_path / "a.ckpt", **sizes)


def test_a_run_is_not_resumed_with_another_model(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "trainer.epochs=1")
    setup.train(setup.build())
    setup.change({"resume": str(tmp_path), "trainer.epochs": 2})
    with pytest.raises(UserError, match=r"last\.ckpt: training cannot go on from it \(.*\n    -> resume with the model"):
        setup.train(setup.build(hidden_sizes=[16]))


def test_the_loss_of_a_batch_is_told_whole_where_several_make_a_step(backend: Backend, tmp_path: Path) -> None:
    class Losses(Callback):
        def __init__(self) -> None:
            self.told: list[float] = []

        def on_batch_end(self, epoch: int, batch_index: int, batch_count: int, loss: float, lr: float) -> None:
            self.told.append(loss)

    first = []
    for accumulate in (1, 2):
        options = ["model=mlp", f"trainer.accumulate_grad_batches={accumulate}", "trainer.epochs=1", "data.batch_size=20"]
        setup, losses = Setup(backend, tmp_path / str(accumulate), *options), Losses()
        setup.train(setup.build(), losses)
        first.append(losses.told[0])
    assert first[0] == first[1]
