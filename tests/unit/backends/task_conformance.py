"""What every backend must do with each of the tasks: what they learn, and what padding, missing labels and other heads change."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from backend_setup import FEW_LAYERS, QUIET, SIZES, alone
from conformance import BackendConformance, RunConformance
from conftest import TINY

from speechtrain.backends.base import Backend
from speechtrain.data.batches import Batch
from speechtrain.errors import UserError

SHOWN_ELSEWHERE = ("tdnn", "conformer", "quartznet", "lstm")
"""Models of which test_torch_models.py shows what padding changes, and test_keras_equals_torch.py that Keras gives the same."""


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

    @pytest.mark.parametrize("model", ["crdnn", "mlp", *(pytest.param(each, marks=pytest.mark.slow) for each in SHOWN_ELSEWHERE)])
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
