"""What every backend must do with every task: a backend's tests derive from the class of each task and give the `backend` fixture."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from backend_setup import Recorder, Setup, ThoroughRecorder, alone, flip_a_bit

from speechtrain.backends.base import Backend
from speechtrain.backends.callbacks import Control
from speechtrain.backends.failures import NonFiniteLossError
from speechtrain.data.batches import Batch
from speechtrain.data.loader import BatchBuilder
from speechtrain.errors import ConfigError, UserError
from speechtrain.processes import interrupts

STOP = ["trainer.early_stopping.patience=1", "trainer.early_stopping.monitor=val/loss", "trainer.early_stopping.min_delta=1"]


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

    def drawn(self, backend: Backend) -> Sequence[str]:
        """Give the model with dropout that a backend trains; with Keras each trace takes seconds."""
        return self.drawing if backend.name == "torch" else ("model=mlp",)

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
            expected.append("checkpoints/last, 1 best")
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
        with pytest.raises(UserError, match=r"another model|has low-rank updates"):
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
            setup = self.setup(backend, tmp_path / str(number), *self.drawn(backend), "trainer.epochs=1", f"seed={seed}")
            setup.train(setup.build(), recorder)
            found.append(recorder.metrics)
        assert found[0] == found[1]
        assert found[0] != found[2]

    @pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
    def test_a_run_resumed_inside_an_epoch_sees_what_it_had_not_seen_and_ends_alike(
        self, backend: Backend, tmp_path: Path, accumulate: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = [*self.drawn(backend), "trainer.epochs=3", "data.train_size=28", "data.batch_size=4"]
        options += ["trainer.checkpoint.every_n_steps=1", f"trainer.accumulate_grad_batches={accumulate}"]
        options += ["scheduler=warmup_cosine", "augment=masks"]
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
