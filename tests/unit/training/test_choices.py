"""What `choose` names is chosen from the data and for the budget, once; what the user sets is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import speechtrain
from speechtrain import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.data import prepare
from speechtrain.data.features.cache import read_all
from speechtrain.errors import ConfigError, DataError
from speechtrain.evaluate import run as evaluate
from speechtrain.training.choices import checkpoint_seconds, choose
from speechtrain.training.steps import build_backend, build_experiment

Write = Callable[..., Path]

TEXTS = ["да", "нет", "дом", "мост", "утро", "день", "ночь", "снег"]
QUICK = ["tracking=[]", "report.enabled=false", "backend.threads=1", "data.feature_cache=null", "data.on_shared.audio=allow"]


def chosen(root: Path, *overrides: str) -> ExperimentConfig:
    return choose(ExperimentConfig.of(compose(["experiment=small_corpus", f"data.root={root}", *QUICK, *overrides])))


def test_lists_are_found_and_features_follow_from_the_recordings(corpus: Write) -> None:
    root = corpus(TEXTS)
    corpus(TEXTS[:2], "dev.jsonl")
    corpus(TEXTS[:2], "test.jsonl")
    cfg = chosen(root, "trainer.epochs=1", "model.channels=32", "trainer.precision=32-true")
    assert (cfg.corpus["val"], cfg.corpus["test"]) == ("dev.jsonl", "test.jsonl")
    assert (cfg.features["sample_rate"], cfg.features["n_mels"]) == (8000, 32)
    assert cfg.choose == []


def test_without_lists_a_text_that_several_recordings_have_is_in_one_split(corpus: Write) -> None:
    command = ["experiment=small_corpus", f"data.root={corpus(TEXTS * 3)}", *QUICK, "trainer.precision=32-true"]
    found = speechtrain.train(compose([*command, "model.channels=32", "trainer.epochs=1", "language_model=words"]))
    tested = {sample.reference for sample in found.samples}
    assert len(found.samples) == 3 * len(tested) > 0
    words = (found.folder / "words.txt").read_text(encoding="utf-8").split()
    assert tested | set(words) <= set(TEXTS)
    assert tested.isdisjoint(words)
    assert "\\3-grams:" in (found.folder / "lm.arpa").read_text(encoding="utf-8")


def test_the_same_few_words_over_and_over_are_in_every_split(corpus: Write) -> None:
    cfg = chosen(corpus(TEXTS[:2] * 8), "trainer.epochs=1", "model.channels=32", "trainer.precision=32-true")
    assert (cfg.corpus["split"]["by"], cfg.corpus["split"]["val"]) == ("utterance", 10)


def test_of_a_few_texts_each_split_has_one_and_fewer_are_refused(corpus: Write) -> None:
    sizes = ["trainer.epochs=1", "model.channels=32", "trainer.precision=32-true"]
    assert chosen(corpus(TEXTS[:3]), *sizes).corpus["split"]["val"] == 34
    with pytest.raises(ConfigError, match="2 different texts of 2 utterances leave none for"):
        chosen(corpus(TEXTS[:2]), *sizes)
    with pytest.raises(ConfigError, match="0 different texts of 0 utterances"):
        chosen(corpus(["", " "]), *sizes)


def test_frames_are_as_long_as_what_is_said_allows(corpus: Write) -> None:
    sizes = ["trainer.epochs=1", "model.channels=32", "trainer.precision=32-true"]
    slow = chosen(corpus(TEXTS), *sizes)
    fast = chosen(corpus(["абвгд" * 5] * 8), *sizes)
    assert (slow.model["time_strides"], fast.model["time_strides"]) == ([2, 2], [3])


@pytest.mark.slow
def test_a_model_is_as_wide_as_the_budget_allows_and_never_trained_for_nothing(corpus: Write, caplog: pytest.LogCaptureFixture) -> None:
    root = corpus(TEXTS)
    with caplog.at_level("INFO"):
        narrow, wide = (chosen(root, f"budget_minutes={minutes}") for minutes in (0.02, 1000))
    assert len([line for line in caplog.messages if "has room for them" in line]) == 1
    assert narrow.model["channels"] < wide.model["channels"]
    assert narrow.trainer.epochs < wide.trainer.epochs < 10_000


def test_a_value_of_a_users_own_file_that_a_choice_replaces_is_told(
    corpus: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [small_corpus, _self_]\nfeatures: {n_mels: 23}\n"
    )
    sizes = ["model.channels=32", "trainer.epochs=1", "trainer.precision=32-true", "model.time_strides=[2]"]
    own = [f"hydra.searchpath=[file://{tmp_path / 'own'}]", "experiment=mine", f"data.root={corpus(TEXTS)}", *QUICK, *sizes]
    with caplog.at_level("INFO"):
        cfg = choose(ExperimentConfig.of(compose(own)))
    assert cfg.features["n_mels"] == 32
    assert "features.sample_rate=8000, features.n_mels=32 in place of 23 (100% of the audio has" in caplog.text


def test_audio_is_read_once_for_the_choices_and_the_run(corpus: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(prepare, "read_all", lambda *args, **options: read.append(1) or read_all(*args, **options))
    sizes = ["model.channels=32", "trainer.epochs=1", "trainer.precision=32-true"]
    speechtrain.train(compose(["experiment=small_corpus", f"data.root={corpus(TEXTS)}", *QUICK, *sizes]))
    assert len(read) == 1


def test_checkpoints_are_in_the_time_of_an_epoch(corpus: Write) -> None:
    options = ["trainer.epochs=1", "model.channels=32", "trainer.precision=32-true", "data.split.val=50"]
    cfg = ExperimentConfig.of(compose(["experiment=small_corpus", f"data.root={corpus(TEXTS)}", *QUICK, *options]))
    backend = build_backend(cfg)
    model = build_experiment(cfg, Path("run"), backend, prepare.prepare(cfg, threads=1)).model
    none = cfg.with_values({"trainer.checkpoint.save_last": False, "trainer.checkpoint.save_top_k": 0})
    assert checkpoint_seconds(none, backend, model) == 0 < checkpoint_seconds(cfg, backend, model)


def test_what_is_set_is_not_chosen(corpus: Write) -> None:
    cfg = chosen(corpus(TEXTS), "model.channels=40", "features.n_mels=23", "trainer.epochs=3", "trainer.precision=32-true")
    assert (cfg.model["channels"], cfg.features["n_mels"], cfg.trainer.epochs) == (40, 23, 3)
    assert cfg.features["sample_rate"] == 8000


@pytest.mark.slow
def test_a_budget_that_no_epoch_fits_into_is_refused(corpus: Write) -> None:
    with pytest.raises(ConfigError, match=r"budget_minutes.*an epoch of"):
        chosen(corpus(TEXTS), "budget_minutes=1e-9")


def test_choosing_epochs_needs_a_budget(corpus: Write) -> None:
    with pytest.raises(ConfigError, match=r"budget_minutes: has no value"):
        compose(["experiment=small_corpus", f"data.root={corpus(TEXTS)}", "budget_minutes=null"])


@pytest.mark.slow
def test_a_run_that_is_resumed_keeps_what_was_chosen_when_it_began(corpus: Write) -> None:
    command = ["experiment=small_corpus", f"data.root={corpus(TEXTS)}", *QUICK, "trainer.precision=32-true"]
    first = speechtrain.train(compose([*command, "budget_minutes=0.05", "trainer.limit_epochs=1"]))
    before = ExperimentConfig.read(first.folder / "config.yaml")
    again = [*command, "budget_minutes=0.05", "trainer.epochs=2", f"resume={first.folder}"]
    second = speechtrain.train(compose(again, output_dir=first.folder))
    after = ExperimentConfig.read(first.folder / "config.yaml")
    assert after.model == before.model
    assert len(second.history) == 2


def test_the_n_gram_of_the_training_texts_is_one_that_the_beam_takes(corpus: Write) -> None:
    command = ["experiment=small_corpus", f"data.root={corpus(TEXTS)}", *QUICK, "trainer.precision=32-true", "model.channels=32"]
    corpus(["ёж"], "test.jsonl")  # with letters that no other text has
    folder = speechtrain.train(compose([*command, "trainer.epochs=1"])).folder
    own = ["from=" + str(folder), "decoder=beam", f"decoder.lm={folder / 'lm.arpa'}", "report=false"]
    assert evaluate(own) == 0
    with pytest.raises(DataError, match="no token for 2 tokens in the texts of test: 'ё'"):
        evaluate([*own, "on_unknown=error"])
