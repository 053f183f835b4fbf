"""What every backend must do with every task: a backend's tests derive from the class of each task and give the `backend` fixture."""

from __future__ import annotations

import shutil
import signal
import struct
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import TINY

from speechtrain import compose
from speechtrain.backends.base import Backend, TrainingPlan
from speechtrain.backends.callbacks import Callback, Control, TrainResult
from speechtrain.backends.failures import NonFiniteLossError
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.data.batches import Batch
from speechtrain.data.loader import BatchBuilder
from speechtrain.data.prepare import prepare
from speechtrain.data.task_data import TaskData
from speechtrain.errors import ConfigError, UserError
from speechtrain.processes import interrupts
from speechtrain.tasks.base import Task
from speechtrain.tasks.build import task_for
from speechtrain.training.steps import Experiment, checkpoint_to_resume, evaluate, make_plan

STOP = ["trainer.early_stopping.patience=1", "trainer.early_stopping.monitor=val/loss", "trainer.early_stopping.min_delta=1"]
QUIET = ["tracking=[]", "report.enabled=false", "backend.threads=1"]
SIZES = ["data.train_size=40", "data.val_size=8", "data.test_size=8"]
FEW_LAYERS = {
    "tdnn": ["model.dilations=[1,2]"],
    "conformer": ["model.n_layers=1"],
    "crdnn": ["model.rnn_layers=1"],
    "quartznet": ["model.repeats=1"],
}
"""Options by model: with Keras each layer adds to what a fit takes to trace."""


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of the longest file inside a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda each: each.file_size)
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack_from("<HH", content, entry.header_offset + 26)
    content[entry.header_offset + 30 + name + extra + entry.file_size // 2] ^= 16
    path.write_bytes(content)


class Recorder(Callback):
    """Writes down every event, and stops where it is told to."""

    def __init__(self, stop_after: int | None = None, interrupt_in: int | None = None, at_batch: int = 0) -> None:
        self.events: list[str] = []
        self.metrics: list[dict[str, float]] = []
        self.stop_after = stop_after
        self.interrupt_in = interrupt_in
        self.at_batch = at_batch

    def on_train_start(self, total_epochs: int, first_epoch: int) -> None:
        self.events.append(f"start {first_epoch}/{total_epochs}")

    def on_batch_end(self, epoch: int, batch_index: int, batch_count: int, loss: float, lr: float) -> None:
        self.events.append(f"batch {epoch}.{batch_index}/{batch_count}")
        if epoch == self.interrupt_in and batch_index == self.at_batch:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
        self.events.append(f"epoch {epoch}")
        self.metrics.append(
            {name: value for name, value in metrics.items() if not name.endswith("_per_s") and not name.startswith("time/")}
        )
        if epoch == self.stop_after:
            control.stop("told to")

    def on_train_end(self, result: TrainResult) -> None:
        self.events.append("end")


class ThoroughRecorder(Recorder):
    """Writes down also what comes before epochs and batches."""

    def on_epoch_start(self, epoch: int) -> None:
        self.events.append(f"before epoch {epoch}")

    def on_batch_start(self, epoch: int, batch_index: int, batch_count: int) -> None:
        self.events.append(f"before batch {epoch}.{batch_index}/{batch_count}")


class Setup:
    """A backend with a tiny corpus."""

    def __init__(self, backend: Backend, folder: Path, *overrides: str, base: Sequence[str] = TINY) -> None:
        self.backend = backend
        self.cfg = ExperimentConfig.of(compose([*base, f"backend={backend.name}", *overrides], output_dir=folder))
        corpus = prepare(self.cfg, threads=1)
        self.task: Task = task_for(self.cfg, corpus)
        self.data: TaskData = corpus.for_task(self.task)

    def change(self, values: dict[str, Any]) -> None:
        self.cfg = self.cfg.with_values(values)

    def build(self, **changes: Any) -> Any:
        model = {**self.cfg.model, **changes}
        return self.backend.build(model, self.task, input_size=self.data.features.size, seed=self.cfg.seed)

    def plan(self) -> TrainingPlan:
        run = Experiment(self.cfg, Path(self.cfg.output_dir), self.backend, self.data, self.task, None)
        return make_plan(run, checkpoint_to_resume(self.cfg, self.backend))

    def train(self, model: Any, *callbacks: Callback, views: int = 1) -> TrainResult:
        Path(self.cfg.output_dir).mkdir(parents=True, exist_ok=True)
        train = self.data.loader("train", shuffle=True, augment=True, views=views)
        assert train is not None
        return self.backend.train(model, train, self.data.loader("val"), self.task, self.plan(), callbacks)

    def outputs(self, model: Any, batches: list[Batch]) -> Any:
        return [outputs for _, outputs in self.backend.predict(model, batches, self.task)]

    def measure(self, model: Any, split: str) -> dict[str, float]:
        loader = self.data.loader(split)
        assert loader is not None
        return evaluate(self.backend, model, loader, self.task, split)[0]


def alone(batch: Batch, row: int) -> Batch:
    """One utterance of a batch, without padding."""
    frames, labels = int(batch.feature_lengths[row]), int(batch.target_lengths[row])
    return Batch(
        batch.features[row : row + 1, :frames],
        batch.feature_lengths[row : row + 1],
        batch.targets[row : row + 1, :labels],
        batch.target_lengths[row : row + 1],
        batch.ids[row : row + 1],
        batch.texts[row : row + 1],
        batch.seconds,
    )


class BackendConformance:
    """What each task has to show; each has its own suite below."""

    options: ClassVar[list[str]]
    """A tiny corpus for the task."""
    metrics: ClassVar[set[str]]
    """Of the task, without the stage."""
    drawing: ClassVar[Sequence[str]] = ("model=mlp",)
    """A model with dropout."""

    def setup(self, backend: Backend, folder: Path, *overrides: str) -> Setup:
        return Setup(backend, folder, *overrides, base=self.options)

    def check_padding(self, backend: Backend, folder: Path, *overrides: str) -> None:
        setup = self.setup(backend, folder, "trainer.epochs=1", "data.num_buckets=1", *overrides)
        built = setup.build()
        setup.train(built)  # so that running statistics are not those of a fresh model
        batch = next(iter(setup.data.loader("val") or []))
        together = setup.outputs(built, [batch])[0]
        for row, single in enumerate(setup.outputs(built, [alone(batch, row) for row in range(len(batch.ids))])):
            frames = int(single.lengths[0])
            assert together.lengths[row] == frames
            np.testing.assert_allclose(together.values[row, :frames], single.values[0, :frames], atol=1e-5)
            np.testing.assert_allclose(together.losses[row], single.losses[0], rtol=1e-4, atol=1e-5)

    def test_events_come_in_order_and_metrics_have_their_names(self, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "model=mlp", "trainer.epochs=2", "data.batch_seconds=15")
        recorder = ThoroughRecorder()
        setup.train(setup.build(), recorder)
        batches = len([event for event in recorder.events if event.startswith("batch 0.")])
        assert batches > 1
        expected = ["start 0/2"]
        for epoch in range(2):
            steps = [f"batch {epoch}.{index}/{batches}" for index in range(batches)]
            expected += [f"before epoch {epoch}", *(event for step in steps for event in (f"before {step}", step)), f"epoch {epoch}"]
        assert recorder.events == [*expected, "end"]
        assert set(recorder.metrics[0]) == {"train/loss", "train/lr", "train/grad_norm", *(f"val/{name}" for name in self.metrics)}

    def test_saves_and_loads(self, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "model=mlp", "trainer.epochs=1")
        model = setup.build()
        result = setup.train(model)
        batch = next(iter(setup.data.loader("val") or []))
        expected = setup.outputs(model, [batch])[0].values
        backend.save(model, tmp_path / "model.bin", {"vocabulary": ["", "a"]})
        assert result.last_checkpoint is not None
        for path in (tmp_path / "model.bin", result.last_checkpoint):
            setup.change({"seed": 99})
            other = setup.build()
            assert not np.array_equal(setup.outputs(other, [batch])[0].values, expected)
            extra = backend.load(other, path)
            np.testing.assert_array_equal(setup.outputs(other, [batch])[0].values, expected)
            assert "vocabulary" in extra

    def test_a_warm_start_takes_the_weights_and_refuses_those_of_another_model(self, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "model=mlp")
        model = setup.build()
        path = tmp_path / f"model{backend.suffix}"
        backend.save(model, path, {})
        setup.change({"seed": 99})
        other = setup.build()
        assert list(backend.warm_start(other, path)) == []
        batch = next(iter(setup.data.loader("val") or []))
        np.testing.assert_array_equal(setup.outputs(other, [batch])[0].values, setup.outputs(model, [batch])[0].values)
        with pytest.raises(UserError, match="another model"):
            backend.warm_start(setup.build(hidden_sizes=[16]), path)
        (tmp_path / f"half{backend.suffix}").write_bytes(path.read_bytes()[:500])
        with pytest.raises(UserError, match="half"):
            backend.warm_start(other, tmp_path / f"half{backend.suffix}")

    def test_a_loss_of_nan_names_the_utterances_and_keeps_the_batch(self, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "model=mlp", "data.batch_size=4", "trainer.max_skipped_steps=0")
        train = setup.data.loader("train", shuffle=True)
        assert train is not None
        dataset = train._builder
        spoilt = next(iter(dataset._cuts))
        original = type(dataset).__getitem__

        class Spoilt(type(dataset)):  # type: ignore[misc]
            def __getitem__(self, key: Any) -> Batch:
                batch = original(self, key)
                if spoilt in batch.ids:
                    batch.features[batch.ids.index(spoilt)] = np.nan
                return batch

        dataset.__class__ = Spoilt
        with pytest.raises(NonFiniteLossError, match=spoilt) as caught:
            backend.train(setup.build(), train, None, setup.task, setup.plan(), ())
        assert spoilt in caught.value.ids
        saved = np.load(tmp_path / "bad_batch.npz")
        assert spoilt in saved["ids"]
        assert np.isnan(saved["features"]).any()


class RunConformance(BackendConformance):
    """What no task changes, so that one task shows it."""

    def test_a_resumed_run_equals_an_uninterrupted_one(self, backend: Backend, tmp_path: Path) -> None:
        options = [
            "model=tdnn",
            "model.dilations=[1]",
            "trainer.epochs=5",
            "scheduler=plateau",
            "scheduler.patience=0",
            "data.batch_seconds=20",
        ]
        options += ["scheduler.min_delta=100"]  # shrinks after every epoch
        whole, resumed = Recorder(), Recorder()
        one = self.setup(backend, tmp_path / "one", *options)
        uninterrupted = one.build()
        one.train(uninterrupted, whole)
        two = self.setup(backend, tmp_path / "two", *options)
        with pytest.raises(KeyboardInterrupt):
            two.train(two.build(), Recorder(interrupt_in=3))
        two.change({"resume": str(tmp_path / "two")})
        continued = two.build()
        two.train(continued, resumed)
        assert resumed.events[0] == "start 3/5"
        assert resumed.metrics == whole.metrics[3:]
        assert one.measure(uninterrupted, "test")["test/loss"] == two.measure(continued, "test")["test/loss"]
        nothing_left = Recorder()
        done = two.build()
        two.train(done, nothing_left)
        assert nothing_left.events == ["start 5/5", "end"]
        assert one.measure(uninterrupted, "test")["test/loss"] == two.measure(done, "test")["test/loss"]

    def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(self, backend: Backend, tmp_path: Path) -> None:
        found = []
        for number, seed in enumerate((3, 3, 4)):
            recorder = Recorder()
            setup = self.setup(backend, tmp_path / str(number), *self.drawing, "trainer.epochs=1", f"seed={seed}")
            setup.train(setup.build(), recorder)
            found.append(recorder.metrics)
        assert found[0] == found[1]
        assert found[0] != found[2]

    @pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.long)])
    def test_a_run_resumed_inside_an_epoch_sees_what_it_had_not_seen_and_ends_alike(
        self, backend: Backend, tmp_path: Path, accumulate: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = self.drawing if backend.name == "torch" else ["model=mlp"]  # with Keras each trace takes seconds
        options = [*model, "trainer.epochs=3", "data.train_size=28", "data.batch_size=4", "trainer.checkpoint.every_n_steps=1"]
        options += [f"trainer.accumulate_grad_batches={accumulate}", "scheduler=warmup_cosine", "augment=masks"]
        read: dict[BatchBuilder, list[tuple[int, list[str]]]] = {}  # by loader: another run's threads may still read
        whole, begun, resumed = Recorder(), Recorder(interrupt_in=1, at_batch=3 * accumulate - 1), Recorder()
        make = BatchBuilder.__getitem__

        def noted(self: BatchBuilder, key: tuple[int, Sequence[str]]) -> Batch:
            if key[0]:  # validation and the example of a batch are of epoch 0
                read.setdefault(self, []).append((key[0], list(key[1])))
            return make(self, key)

        monkeypatch.setattr(BatchBuilder, "__getitem__", noted)
        one = self.setup(backend, tmp_path / "one", *options)
        uninterrupted = one.build()
        one.train(uninterrupted, whole)
        two = self.setup(backend, tmp_path / "two", *options)
        with pytest.raises(KeyboardInterrupt):
            two.train(two.build(), begun)
        shutil.copytree(tmp_path / "two", tmp_path / "three")
        two.change({"resume": str(tmp_path / "two")})
        continued = two.build()
        two.train(continued, resumed)
        batches = int(resumed.events[1].rpartition("/")[2])
        assert batches > 2 * accumulate + 1
        assert resumed.events[:2] == ["start 1/3", f"batch 1.{2 * accumulate}/{batches}"]
        expected, _, found = read.values()
        assert found == expected[2 * accumulate :]
        assert resumed.events[1:] == whole.events[-len(resumed.events) + 1 :]
        assert resumed.metrics == whole.metrics[1:]
        assert one.measure(uninterrupted, "test")["test/loss"] == two.measure(continued, "test")["test/loss"]
        other = self.setup(backend, tmp_path / "three", *options, "data.batch_size=3", f"resume={tmp_path / 'three'}")
        with pytest.raises(ConfigError, match=rf"was written inside an epoch of {batches} batches, which now has \d+"):
            other.train(other.build())

    def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_an_earlier_one(
        self, backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        options = ["model=mlp", "trainer.epochs=3", "trainer.checkpoint.every_n_epochs=1", "trainer.checkpoint.save_top_k=0"]
        whole, resumed = Recorder(), Recorder()
        one = self.setup(backend, tmp_path / "one", *options)
        one.train(one.build(), whole)
        two = self.setup(backend, tmp_path / "two", *options)
        with pytest.raises(KeyboardInterrupt):
            two.train(two.build(), Recorder(interrupt_in=2))
        last, *earlier = sorted((tmp_path / "two/checkpoints").iterdir(), key=lambda path: path.stem != "last")
        flip_a_bit(last)
        two.change({"resume": str(tmp_path / "two")})
        two.train(two.build(), resumed)
        assert resumed.metrics == whole.metrics[2:]
        assert f"going on from {tmp_path / 'two/checkpoints/epoch=002'}{backend.suffix} instead" in caplog.text
        for path in (last, *earlier, tmp_path / f"two/checkpoints/epoch=003{backend.suffix}"):
            path.write_bytes(b"")
        with pytest.raises(UserError, match=r"last\.\w+ is not a .*checkpoint that can be read"):
            two.train(two.build())

    def test_a_resumed_run_remembers_its_best_epoch_and_how_long_it_has_waited(self, backend: Backend, tmp_path: Path) -> None:
        hopeless = ["optimizer=sgd", "optimizer.lr=1.0", "trainer.gradient_clip_val=1e-3", "scheduler=step", "scheduler.step_epochs=1"]
        waiting = ["trainer.early_stopping.patience=3", "trainer.early_stopping.min_delta=100", "objective.metric=val/loss"]
        options = ["model=mlp", "trainer.epochs=9", *hopeless, *waiting]
        one = self.setup(backend, tmp_path / "one", *options)
        whole = one.train(one.build())
        two = self.setup(backend, tmp_path / "two", *options)
        with pytest.raises(KeyboardInterrupt):
            two.train(two.build(), Recorder(interrupt_in=2))
        two.change({"resume": str(tmp_path / "two")})
        resumed = two.train(two.build())
        assert len(whole.history) == 4  # the first epoch and three that are no better
        assert len(resumed.history) == 2
        assert resumed.stop_reason == whole.stop_reason
        assert resumed.best_value == whole.best_value
        assert whole.best_checkpoint is not None
        assert resumed.best_checkpoint is not None
        assert resumed.best_checkpoint.name == whole.best_checkpoint.name
        assert [path.name for path in (tmp_path / "two/checkpoints").glob("best-*")] == [whole.best_checkpoint.name]
        again = two.train(two.build())  # as after a kill between the last epoch and the end of the run
        assert (again.history, again.stop_reason, again.best_value) == ([], whole.stop_reason, whole.best_value)
        assert again.best_checkpoint == resumed.best_checkpoint
        two.change({"trainer.early_stopping.patience": 4})
        assert len(two.train(two.build()).history) == 1

    def test_an_interrupt_that_python_loses_in_a_finalizer_ends_the_training_all_the_same(
        self, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Finalizer:
            def __del__(self) -> None:
                signal.raise_signal(signal.SIGTERM)
                time.sleep(0)  # here Python looks for signals, at the latest

        class Loses(Recorder):
            def on_batch_end(self, epoch: int, batch_index: int, batch_count: int, loss: float, lr: float) -> None:
                super().on_batch_end(epoch, batch_index, batch_count, loss, lr)
                if epoch == 1:
                    Finalizer()
                    self.events.append("lost")

        setup = self.setup(backend, tmp_path, "model=mlp", "trainer.epochs=9")
        recorder = Loses()
        lost: list[BaseException | None] = []
        monkeypatch.setattr(sys, "unraisablehook", lambda what: lost.append(what.exc_value))
        before = signal.getsignal(signal.SIGTERM)
        interrupts.listen(signal.SIGTERM)
        try:
            with pytest.raises(KeyboardInterrupt):
                setup.train(setup.build(), recorder)
        finally:
            signal.signal(signal.SIGTERM, before)
        assert [type(each) for each in lost] == [KeyboardInterrupt]
        assert recorder.events[-1] == "lost"

    def test_a_callback_can_stop_the_training(self, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "model=mlp", "trainer.epochs=9")
        recorder = Recorder(stop_after=1)
        result = setup.train(setup.build(), recorder)
        assert result.stop_reason == "told to"
        assert [event for event in recorder.events if event.startswith("epoch")] == ["epoch 0", "epoch 1"]
        assert recorder.events[-1] == "end"

    def test_a_callback_can_prune_the_training(self, backend: Backend, tmp_path: Path) -> None:
        class Pruner(Recorder):
            def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
                super().on_epoch_end(epoch, metrics, control)
                if epoch == 1:
                    control.prune("others do better")

        setup = self.setup(backend, tmp_path, "model=mlp", "trainer.epochs=9")
        recorder = Pruner()
        result = setup.train(setup.build(), recorder)
        assert result.pruned
        assert result.stop_reason == "others do better"
        assert [event for event in recorder.events if event.startswith("epoch")] == ["epoch 0", "epoch 1"]

    def test_early_stopping_ends_a_run_that_does_not_improve(self, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "model=mlp", "trainer.epochs=9", "optimizer.lr=1e-9", *STOP)
        result = setup.train(setup.build())
        assert len(result.history) < 9
        assert "val/loss" in str(result.stop_reason)

    def test_keeps_the_checkpoints_it_is_told_to(self, backend: Backend, tmp_path: Path) -> None:
        options = ["trainer.checkpoint.save_top_k=2", "trainer.checkpoint.every_n_epochs=2", "objective.metric=val/loss"]
        setup = self.setup(backend, tmp_path, "model=mlp", "trainer.epochs=5", *options)
        result = setup.train(setup.build())
        names = sorted(path.stem for path in (tmp_path / "checkpoints").iterdir())
        assert len([name for name in names if name.startswith("best-")]) == 2
        assert [name for name in names if name.startswith("epoch=")] == ["epoch=002", "epoch=004"]
        assert "last" in names
        best = min(range(5), key=lambda epoch: result.history[epoch]["val/loss"])
        assert result.best_checkpoint is not None
        assert f"epoch={best + 1:03d}" in result.best_checkpoint.name
        assert result.best_value == pytest.approx(result.history[best]["val/loss"])

    def test_a_checkpoints_name_may_hold_its_epoch_and_metrics(self, backend: Backend, tmp_path: Path) -> None:
        options = ["model=mlp", "trainer.epochs=2", "trainer.checkpoint.every_n_epochs=1", "trainer.checkpoint.save_top_k=0"]
        setup = self.setup(backend, tmp_path, *options)
        setup.change({"trainer.checkpoint.filename": "e={epoch:02d}-loss={val/loss:.3f}"})
        history = setup.train(setup.build()).history
        names = sorted(path.stem for path in (tmp_path / "checkpoints").iterdir())
        assert names == [*(f"e={epoch + 1:02d}-loss={history[epoch]['val/loss']:.3f}" for epoch in range(2)), "last"]

    def test_refuses_a_damaged_or_foreign_checkpoint(self, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "model=mlp", "trainer.epochs=1")
        model = setup.build()
        backend.save(model, tmp_path / "model.bin", {})
        whole = (tmp_path / "model.bin").read_bytes()
        (tmp_path / "half.bin").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "text.bin").write_text("not a checkpoint")
        for name in ("half.bin", "text.bin", "absent.bin"):
            with pytest.raises(UserError, match=name):
                backend.load(model, tmp_path / name)
        with pytest.raises(UserError, match="another model"):
            backend.load(setup.build(hidden_sizes=[16]), tmp_path / "model.bin")
        flip_a_bit(tmp_path / "model.bin")
        for call in (backend.load, backend.warm_start):
            with pytest.raises(UserError, match=r"model\.bin .* is damaged"):
                call(setup.build(), tmp_path / "model.bin")

    @pytest.mark.parametrize("number", [np.nan, np.inf])
    def test_refuses_weights_that_are_no_numbers(self, number: float, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "model=mlp")
        model = setup.build()
        if hasattr(model, "get_weights"):
            model.set_weights([np.full_like(value, number) for value in model.get_weights()])
        else:
            for parameter in model.parameters():
                parameter.data.fill_(number)
        backend.save(model, tmp_path / "model.bin", {})
        with pytest.raises(UserError, match=r"model\.bin .*its weight .* holds (NaN|NaN or infinity|infinity)\b"):
            backend.load(setup.build(), tmp_path / "model.bin")


class CtcConformance(RunConformance):
    """CTC."""

    options = TINY
    metrics: ClassVar[set[str]] = {"loss", "cer", "wer", "exact", "empty"}
    drawing = ("model=crdnn", "model.conv_channels=[4,4]", "model.rnn_size=8", "model.rnn_layers=1", "model.dnn_size=8")

    def test_learns_a_tiny_set(self, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "model=tdnn", "augment=none", "trainer.epochs=25", "data.batch_size=8", "optimizer.lr=0.01")
        model = setup.build(channels=32, dropout=0.0)
        before = setup.measure(model, "train")["train/loss"]
        setup.train(model)
        after = setup.measure(model, "train")
        assert after["train/cer"] < 0.05
        assert after["train/loss"] < before / 10

    @pytest.mark.parametrize("model", ["tdnn", "conformer", "crdnn", "quartznet", "lstm", "mlp"])
    def test_padding_changes_no_output(self, backend: Backend, tmp_path: Path, model: str) -> None:
        self.check_padding(backend, tmp_path, f"model={model}", *FEW_LAYERS.get(model, ()))

    @pytest.mark.parametrize(("model", "even"), [("tdnn", True), ("quartznet", True), ("conformer", False), ("crdnn", False)])
    def test_an_encoder_of_limited_context_begins_with_all_labels_alike(
        self, backend: Backend, tmp_path: Path, model: str, even: bool
    ) -> None:
        setup = self.setup(backend, tmp_path, f"model={model}", *FEW_LAYERS[model])
        log_probs = setup.outputs(setup.build(), [next(iter(setup.data.loader("val") or []))])[0].values
        assert np.allclose(log_probs, -np.log(log_probs.shape[-1]), atol=1e-6) == even

    def test_a_warm_start_takes_the_head_of_each_label_where_it_was(self, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "model=mlp", "trainer.epochs=1")
        former = setup.build()
        setup.train(former)
        path = tmp_path / f"model{backend.suffix}"
        backend.save(former, path, {})
        batch = next(iter(setup.data.loader("val") or []))
        before, _ = backend.infer(former, batch.features, batch.feature_lengths)
        labels = [0, 3, None, 1, 2, *range(5, before.shape[-1])]
        fewer = labels[:4]
        for wanted in (labels, fewer):
            setup.task.tokenizer.vocabulary = [""] * len(wanted)  # type: ignore[attr-defined]
            model = setup.build()
            assert list(backend.warm_start(model, path, wanted)) == []
            after, _ = backend.infer(model, batch.features, batch.feature_lengths)
            for label, there in enumerate(wanted):
                if there is not None:  # without what log-softmax subtracts from all
                    np.testing.assert_allclose(after[..., label] - after[..., 0], before[..., there] - before[..., 0], atol=1e-4)
        with pytest.raises(UserError, match="another model: its head has"):
            backend.warm_start(model, path, [0, 1, 2, 99])

    def test_of_equal_values_the_last_epoch_is_the_best(self, backend: Backend, tmp_path: Path) -> None:
        options = ["model=mlp", "trainer.epochs=3", "optimizer.lr=1e-9", "trainer.checkpoint.save_top_k=2", "objective.metric=val/exact"]
        setup = self.setup(backend, tmp_path, *options)
        result = setup.train(setup.build())
        assert [epoch["val/exact"] for epoch in result.history] == [0, 0, 0]
        assert result.best_checkpoint is not None
        assert result.best_checkpoint.stem == "best-epoch=003"
        assert sorted(path.stem for path in (tmp_path / "checkpoints").glob("best-*")) == ["best-epoch=002", "best-epoch=003"]

    def test_utterances_that_cannot_be_aligned_change_nothing(self, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "model=mlp", "model.stack=8", "task.on_infeasible=keep")
        batch = next(iter(setup.data.loader("train") or []))
        short = alone(batch, 0)
        outputs = setup.outputs(
            setup.build(), [batch, Batch(short.features[:, :8], np.array([8]), *_text(short, 3), short.ids, short.texts, 1.0)]
        )
        assert outputs[1].losses[0] == 0.0
        assert np.isfinite(outputs[0].losses).all()


class ClassificationConformance(BackendConformance):
    """One class an utterance."""

    def test_a_warm_start_with_other_classes_keeps_the_encoder_and_begins_with_a_new_head(self, backend: Backend, tmp_path: Path) -> None:
        first = self.setup(backend, tmp_path / "one", "model=mlp")
        second = self.setup(backend, tmp_path / "two", "model=mlp", "data.alphabet=abcdefg", "seed=5")
        path = tmp_path / f"model{backend.suffix}"
        old, new = first.build(), second.build()
        backend.save(old, path, {})
        fresh = second.outputs(new, [batch := next(iter(second.data.loader("val") or []))])[0].values
        left = backend.warm_start(new, path)
        assert len(left) == 2
        assert all("head" in name or "dense" in name for name in left)
        warm = second.outputs(new, [batch])[0].values
        assert np.isfinite(warm).all()
        assert not np.allclose(warm, fresh)

    options: ClassVar[list[str]] = [
        *("data=synthetic", "task=classification", "features=logmel_8k", "data.alphabet=abcd", "data.min_chars=1", "data.max_chars=1"),
        *(*SIZES, *QUIET),
    ]
    metrics: ClassVar[set[str]] = {"loss", "accuracy", "precision", "recall", "f1"}

    def test_learns_a_tiny_set(self, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "augment=none", "trainer.epochs=12", "data.batch_size=8", "optimizer.lr=0.01")
        model = setup.build(channels=32, dropout=0.0)
        before = setup.measure(model, "train")["train/loss"]
        setup.train(model)
        after = setup.measure(model, "train")
        assert after["train/accuracy"] == 1.0
        assert after["train/loss"] < before / 10

    @pytest.mark.parametrize(("model", "pool"), [("tdnn", "mean"), ("mlp", "mean"), ("mlp", "max"), ("lstm", "last")])
    def test_padding_changes_no_output(self, backend: Backend, tmp_path: Path, model: str, pool: str) -> None:
        self.check_padding(backend, tmp_path, f"model={model}", f"task.pool={pool}")

    def test_rare_classes_can_count_more_and_smoothing_holds_the_loss_up(self, backend: Backend, tmp_path: Path) -> None:
        batch = None
        found = []
        for number, options in enumerate(([], ["task.class_weights={a: 3, b: 0}"], ["task.label_smoothing=0.2"])):
            setup = self.setup(backend, tmp_path / str(number), "model=mlp", *options)
            batch = batch or next(iter(setup.data.loader("val") or []))
            found.append(setup.outputs(setup.build(), [batch])[0])
        assert batch is not None
        log_probs, classes = found[0].values[:, 0], batch.targets[:, 0]
        plain = -log_probs[np.arange(len(classes)), classes]
        np.testing.assert_allclose(found[0].losses, plain, rtol=1e-5)
        np.testing.assert_allclose(found[1].losses, plain * np.array([3, 0, 1, 1])[classes], rtol=1e-5)
        np.testing.assert_allclose(found[2].losses, 0.8 * plain - 0.2 * log_probs.mean(1), rtol=1e-5)

    def test_an_utterance_of_no_class_has_no_loss(self, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "model=mlp")
        batch = next(iter(setup.data.loader("val") or []))
        lengths = batch.target_lengths.copy()
        lengths[0] = 0
        model = setup.build()
        plain, without = setup.outputs(model, [batch, batch._replace(target_lengths=lengths)])
        assert plain.losses[0] > 0
        assert without.losses[0] == 0
        np.testing.assert_array_equal(without.losses[1:], plain.losses[1:])


class RegressionConformance(BackendConformance):
    """A value a frame."""

    options: ClassVar[list[str]] = ["data=signals", "data.duration=1", "data.sample_rate=60", *SIZES, *QUIET]
    metrics: ClassVar[set[str]] = {"loss", "mse", "rmse", "mae", "pearson_r", "r2", "snr_db", "snr_gain_db"}

    def test_learns_a_tiny_set(self, backend: Backend, tmp_path: Path) -> None:
        options = ["trainer.epochs=30", "data.batch_size=8", "optimizer.lr=0.01", "data.train_size=16"]
        setup = self.setup(backend, tmp_path, *options)
        model = setup.build(channels=32, dropout=0.0)
        before = setup.measure(model, "train")["train/loss"]
        setup.train(model)
        after = setup.measure(model, "train")
        assert after["train/snr_db"] > 6
        assert after["train/loss"] < before / 4

    @pytest.mark.parametrize("model", ["tdnn", "lstm"])
    def test_what_lies_behind_an_end_counts_nowhere(self, backend: Backend, tmp_path: Path, model: str) -> None:
        setup = self.setup(backend, tmp_path, f"model={model}")
        batch = next(iter(setup.data.loader("val") or []))
        features, targets, lengths = batch.features.copy(), batch.targets.copy(), batch.feature_lengths.copy()
        lengths[0] = 31
        features[0, 31:] = 0
        targets[0, 31:] = 0
        shorter = batch._replace(features=features, targets=targets, feature_lengths=lengths, target_lengths=lengths)
        built = setup.build()
        together, single = setup.outputs(built, [shorter, alone(shorter, 0)])
        assert together.lengths[0] == single.lengths[0] == 31
        np.testing.assert_allclose(together.values[0, :31], single.values[0], atol=1e-5)
        np.testing.assert_allclose(together.losses[0], single.losses[0], rtol=1e-4)

    def test_there_is_a_value_for_every_frame_whatever_the_subsampling(self, backend: Backend, tmp_path: Path) -> None:
        setup = self.setup(backend, tmp_path, "model=mlp", "model.stack=7")
        batch = next(iter(setup.data.loader("val") or []))
        outputs = setup.outputs(setup.build(), [batch])[0]
        assert outputs.values.shape == batch.targets.shape == (8, 60, 1)
        assert outputs.lengths.tolist() == [60] * 8

    @pytest.mark.parametrize("criterion", ["mse", "mae", "huber", "smooth_l1"])
    def test_the_criteria_are_those_of_pytorch(self, backend: Backend, tmp_path: Path, criterion: str) -> None:
        from torch import from_numpy
        from torch.nn import functional

        setup = self.setup(backend, tmp_path, "model=mlp", f"task.criterion={criterion}", "task.delta=0.4")
        batch = next(iter(setup.data.loader("val") or []))
        outputs = setup.outputs(setup.build(), [batch])[0]
        functions = {"mse": functional.mse_loss, "mae": functional.l1_loss, "huber": functional.huber_loss}
        options = {"huber": {"delta": 0.4}, "smooth_l1": {"beta": 0.4}}.get(criterion, {})
        wanted = functions.get(criterion, functional.smooth_l1_loss)(
            from_numpy(outputs.values), from_numpy(batch.targets), reduction="none", **options
        )
        np.testing.assert_allclose(outputs.losses, wanted.mean(2).sum(1).numpy(), rtol=1e-4)


def _text(batch: Batch, length: int) -> tuple[Any, Any]:
    return np.resize(batch.targets, (1, length)), np.array([length])
