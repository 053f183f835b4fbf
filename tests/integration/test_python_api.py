"""Training from Python, with every model and with a user's own parts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SHARED_DATA, TINY, TRAINED, thinned

import speechtrain
from speechtrain.backends.callbacks import Callback
from speechtrain.errors import ConfigError, DataError
from speechtrain.tracking.run_folder import BEST_CHECKPOINT, read_run_file

pytestmark = pytest.mark.long


def test_a_config_trains_and_gives_its_results_back(tmp_path: Path) -> None:
    cfg = speechtrain.compose([*TINY, "model=tdnn", "trainer.epochs=3", "data.batch_size=8"])
    result = speechtrain.train(cfg)
    assert result.objective == min(epoch["val/cer"] for epoch in result.history)
    assert {"test/wer", "test/cer", "test/loss", "train/loss"} <= set(result.metrics)
    assert len(result.samples) == 8
    assert result.checkpoint is not None
    assert result.checkpoint.is_relative_to(tmp_path)
    assert read_run_file(result.folder)[BEST_CHECKPOINT] == result.checkpoint.name


@pytest.mark.parametrize(
    ("data", "model"),
    thinned(
        [
            *(("synthetic", model) for model in ("tdnn", "conformer", "crdnn", "mlp")),
            ("digits", "tdnn"),
            *(pytest.param("digits", model, marks=pytest.mark.slow) for model in ("conformer", "crdnn", "mlp")),
        ],
        4,
    ),
)
def test_every_model_runs_one_batch_of_every_corpus(model: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHTRAIN_CACHE", str(tmp_path.parent / "cache"))
    cfg = speechtrain.compose([f"data={data}", f"model={model}", "trainer.fast_dev_run=true", "tracking=[]", "backend.threads=1"])
    result = speechtrain.train(cfg)
    assert len(result.history) == 1
    assert "test/wer" in result.metrics


@pytest.mark.parametrize(
    "options",
    thinned(
        [
            ["trainer.precision=bf16-mixed"],
            ["model=conformer", "trainer.precision=bf16-mixed"],
            ["model=crdnn", "trainer.precision=bf16-mixed"],
            ["model=tdnn", "trainer.precision=bf16-true"],
            ["trainer.precision=64-true"],
            ["trainer.accumulate_grad_batches=2"],
            ["trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_val=0.1"],
            ["trainer.gradient_clip_val=null"],
            ["trainer.max_steps=3"],
            ["trainer.val_every_n_epochs=2"],
            ["trainer.deterministic=true"],
            ["trainer.checkpoint.save_top_k=0", "trainer.checkpoint.save_last=false"],
            ["trainer.test_checkpoint=last"],
            ["optimizer=sgd", "scheduler=step"],
            ["optimizer=rmsprop", "scheduler=exponential"],
            ["optimizer=adam", "scheduler=plateau"],
            ["features.normalize=band", "augment=specaugment"],
        ],
        4,
    ),
    ids=lambda options: options[-1],
)
def test_options_of_training_run(options: list[str]) -> None:
    result = speechtrain.train(speechtrain.compose([*TINY, "model=mlp", "trainer.epochs=2", "data.batch_seconds=15", *options]))
    assert result.metrics["train/loss"] > 0


def test_without_validation_the_objective_must_be_another(corpus: Callable[..., Path]) -> None:
    root = corpus(["ab", "ba"] * 4)
    overrides = ["data=manifest", f"data.root={root}", "features=logmel_8k", "model=mlp", "trainer.epochs=1", "tracking=[]"]
    with pytest.raises(ConfigError, match=r"objective.metric: is val/cer, but there are no validation utterances"):
        speechtrain.train(speechtrain.compose(overrides))
    result = speechtrain.train(speechtrain.compose([*overrides, "objective.metric=train/loss"]))
    assert result.objective == result.metrics["train/loss"]
    with pytest.raises(
        ConfigError, match=r"(?s)no metric 'val/weer'.*did you mean 'val/wer'.*trainer.checkpoint.monitor: there is no metric 'x'"
    ):
        speechtrain.train(speechtrain.compose([*overrides, "objective.metric=val/weer", "trainer.checkpoint.monitor=x"]))


@pytest.mark.slow
def test_utterances_too_short_for_their_text_are_counted_and_left_out_of_training_only(
    corpus: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = corpus(["ab", "ba", "ab" * 60, "a" * 30])
    corpus(["ab", "ba" * 60], name="valid.jsonl")
    overrides = ["data=manifest", f"data.root={root}", "data.val=valid.jsonl", "features=logmel_8k", "tracking=[]", "trainer.epochs=1"]
    overrides += ["model=conformer", "model.subsampling=4", "backend.threads=1"]
    with caplog.at_level(logging.WARNING):
        result = speechtrain.train(speechtrain.compose(overrides))
    assert result.metrics["data/infeasible"] == 2
    assert "train-2 (26 frames, needs 120)" in caplog.text
    assert "train-3 (26 frames, needs 59)" in caplog.text
    assert len(result.samples) == 2
    with pytest.raises(DataError, match="2 of 4 training utterances are too short"):
        speechtrain.train(speechtrain.compose([*overrides, "task.on_infeasible=error"]))
    kept = speechtrain.train(speechtrain.compose([*overrides, "task.on_infeasible=keep"]))
    assert kept.metrics["train/loss"] > 0


OWN = """
import torch
from speechtrain.backends.torch.encoder import Encoder
from speechtrain.data.corpora.synthetic import Synthetic
from speechtrain.data.text.tokenizers import CharTokenizer

class MyEncoder(Encoder):
    def __init__(self, input_size, width=8):
        super().__init__()
        self.layer = torch.nn.Linear(input_size, width)
        self.output_size, self.subsampling, self.receptive_field = width, 1, 1
    def output_lengths(self, lengths):
        return lengths
    def forward(self, features, lengths):
        return self.layer(features), lengths

class MyOptimizer(torch.optim.SGD):
    pass

class MyTokenizer(CharTokenizer):
    pass

class MyCorpus(Synthetic):
    def __init__(self, size):
        super().__init__("ab", 1, size, 4, 4, 1, 3, 8000, 20.0)
"""


def test_a_users_own_model_optimizer_tokenizer_and_corpus_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    overrides = ["model=custom", "model._target_=own_parts.MyEncoder", "+model.width=12"]
    overrides += ["optimizer=custom", "optimizer._target_=own_parts.MyOptimizer", "+optimizer.lr=0.1"]
    overrides += ["tokenizer=custom", "tokenizer._target_=own_parts.MyTokenizer"]
    overrides += ["data=custom", "data._target_=own_parts.MyCorpus", "+data.size=10"]
    result = speechtrain.train(speechtrain.compose([*overrides, "features=logmel_8k", "trainer.epochs=1", "tracking=[]"]))
    assert type(result.model.encoder).__name__ == "MyEncoder"
    assert result.model.encoder.output_size == 12
    with pytest.raises(ConfigError, match="takes no argument 'depth'"):
        speechtrain.compose([*overrides, "+model.depth=2"])


def test_a_users_own_tokenizer_that_is_none_is_refused_by_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_tokens.py").write_text("class Letters:\n    def __init__(self, texts=(), vocabulary=None):\n        pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = speechtrain.compose(["data=synthetic", "tokenizer=custom", "tokenizer._target_=own_tokens.Letters", "tracking=[]"])
    with pytest.raises(ConfigError, match=r"tokenizer\._target_: must make a tokenizer, received Letters\n.*data\.text\.base\.Tokenizer"):
        speechtrain.train(config)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no recorded speech beside the checkout")
@pytest.mark.parametrize(
    ("experiment", "folder"), thinned([("fsdd", "fsdd"), ("fsdd_unseen_speaker", "fsdd"), ("digit_strings", "fsdd_strings")], 3)
)
def test_experiments_on_recorded_speech_take_only_the_folder(experiment: str, folder: str) -> None:
    given = [
        f"experiment={experiment}",
        f"data.root={SHARED_DATA / folder}",
        "trainer.fast_dev_run=true",
        "tracking=[]",
        "backend.threads=1",
    ]
    result = speechtrain.train(speechtrain.compose(given))
    assert result.metrics["data/skipped"] == 0
    assert "test/wer" in result.metrics


def test_weights_of_another_vocabulary_of_the_same_size_keep_the_tokens_they_were_trained_for(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    changed = ["trainer.epochs=1", "optimizer.lr=1e-9", f"init_from={trained}", "data.normalize=['replace:a:z']"]
    result = speechtrain.train(speechtrain.compose([*TRAINED, *changed], output_dir=tmp_path / "other"))
    assert "1 of 9 tokens begin anew, which that model has not: 'z'" in caplog.text
    known = [sample for sample in result.samples if "z" not in sample.reference]
    assert known
    assert [sample.hypothesis for sample in known] == [sample.reference for sample in known]


def test_a_run_can_start_from_the_weights_of_another(tmp_path: Path) -> None:
    options = [*TINY, "model=mlp", "trainer.epochs=3"]
    first = speechtrain.train(speechtrain.compose(options, output_dir=tmp_path / "outputs/day/first"))
    warm = speechtrain.compose([*options, "init_from=last", "trainer.epochs=1"], output_dir=tmp_path / "outputs/day/two")
    assert speechtrain.train(warm).history[0]["train/loss"] < first.history[0]["train/loss"] / 2
    with pytest.raises(ConfigError, match="init_from: no such run or checkpoint"):
        speechtrain.compose([*options, "init_from=outputs/day/none"])
    absent = speechtrain.compose([*options, "init_from=absent"], output_dir=tmp_path / "three")
    with pytest.raises(ConfigError, match="init_from: no run 'absent'"):
        speechtrain.train(absent)
    (tmp_path / "other.keras").touch()
    other = speechtrain.compose([*options, "init_from=other.keras"], output_dir=tmp_path / "four")
    with pytest.raises(ConfigError, match=r"init_from: .*other.keras is not of backend=torch"):
        speechtrain.train(other)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no recorded speech beside the checkout")
def test_a_few_recorded_utterances_can_be_learnt_by_heart() -> None:
    given = [
        "experiment=fsdd",
        f"data.root={SHARED_DATA / 'fsdd'}",
        "data.limit_utterances=24",
        "data.test=train_full.jsonl",
        "data.train=test.jsonl",
    ]
    given += [
        "augment=none",
        "model.dropout=0",
        "task.label_smoothing=0",
        "trainer.epochs=40",
        "data.batch_size=6",
        "tracking=[]",
        "backend.threads=1",
    ]
    cfg = speechtrain.compose(given)
    cfg.data.test = None
    cfg.data.val = None
    result = speechtrain.train(cfg)
    assert result.metrics["train/loss"] < 0.2


def test_what_turns_out_to_be_bad_while_training_is_counted_with_the_rest(
    corpus: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    for name, texts in (("valid", ["b a", "a"]), ("test", ["b", "a b"])):
        corpus(texts, f"{name}.jsonl")
    root = corpus(["a b"] * 12, at_2={"text": ""})
    for name in ("train-4", "train-7", "valid-0", "test-0"):
        (root / f"audio/{name}.wav").write_bytes(b"RIFF")
    given = [
        "data=manifest",
        f"data.root={root}",
        "data.val=valid.jsonl",
        "data.test=test.jsonl",
        "data.trust_durations=true",
        "data.sample_rate=8000",
    ]
    given += ["features=logmel_8k", "model=mlp", "trainer.epochs=2", "report.enabled=false", "backend.threads=1"]
    result = speechtrain.train(speechtrain.compose([*given, "data.check_hours=0", "data.batch_size=1"]))
    assert result.metrics["data/skipped"] == 5
    assert "4 utterances could not be read, and were left out" in caplog.text
    assert len(result.samples) == 1


def test_ctrl_c_that_makes_a_library_fail_is_ctrl_c_all_the_same(tmp_path: Path) -> None:
    class Struck(Callback):
        def on_train_start(self, total_epochs: int, first_epoch: int) -> None:
            try:
                raise KeyboardInterrupt
            finally:
                raise ValueError("half done")

    with pytest.raises(KeyboardInterrupt):
        speechtrain.train(speechtrain.compose([*TINY, "model=mlp"], output_dir=tmp_path / "run"), callbacks=[Struck()])
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "KILLED"
