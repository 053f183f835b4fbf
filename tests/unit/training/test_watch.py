"""A good recipe is broken in ways that the watcher names: in the terminal, in the trackers and by `python -m speechtrain.diagnose`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import TINY

import speechtrain
from speechtrain import diagnose
from speechtrain.backends.failures import NonFiniteLossError
from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.data.prepare import prepare
from speechtrain.errors import ConfigError, DataError, UserError
from speechtrain.tracking.recorder import RunRecorder
from speechtrain.training import facts, steps
from speechtrain.training.diagnosis import Evidence
from speechtrain.training.diagnosis import diagnose as findings_of
from speechtrain.training.facts import gather
from speechtrain.training.history import HISTORY, History
from speechtrain.training.watch import DIAGNOSIS, DiagnosisCallback

GOOD = [*TINY, "model=mlp", "data.train_size=96", "data.val_size=12", "data.batch_size=8", "trainer.epochs=8", "augment=none"]
"""A recipe of 128 steps that learns."""

PARTS = """
from dataclasses import replace
from pathlib import Path

from speechtrain.data.corpora.synthetic import Synthetic
from speechtrain.tracking.base import Tracker


class Mixed(Synthetic):
    '''Texts that are not said in their recordings.'''

    def __init__(self):
        super().__init__("abcdefgh", 1, 96, 12, 4, 3, 8, 8000, 20.0)

    def _cut(self, split, index):
        cut, other = super()._cut(split, index), super()._cut(split, (7 * index + 3) % self.sizes[split])
        cut.text = other.text[: len(cut.text)].ljust(len(cut.text), "a")
        return cut


class Notes(Tracker):
    def start(self, info):
        pass

    def set_tag(self, name, value):
        with Path("tags.txt").open("a") as file:
            file.write(f"{name}={value}\\n")

    def log_file(self, path, folder=""):
        with Path("files.txt").open("a") as file:
            file.write(f"{path.name}\\n")

    def nothing(self, *args, **kwargs):
        return ""

    log_metrics = log_table = log_checkpoint = how_to_look = finish = nothing
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "broken_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "broken_parts"


def known_before(*overrides: str) -> list[str]:
    """What is found before the first step of a run, by its names."""
    cfg = ExperimentConfig.of(speechtrain.compose(overrides, output_dir=Path("run")))
    backend = steps.build_backend(cfg)
    run = steps.build_experiment(cfg, Path("run"), backend, prepare(cfg, threads=1))
    steps.leave_out_infeasible(run)
    return [finding.code for finding in findings_of(Evidence(gather(run, steps.make_loaders(run)[0])))]


@pytest.mark.parametrize(
    ("broken", "codes"),
    [
        ([], []),
        (["optimizer.lr=1"], ["high-lr"]),
        (["optimizer.lr=1e-5"], ["low-lr"]),
        (["scheduler.warmup_ratio=0.9"], ["long-warmup"]),
        (["task.label_smoothing=0.9"], ["regularisation"]),
        (["optimizer.weight_decay=20"], ["regularisation"]),
        (["augment.time_masks=10", "augment.time_mask_width=500", "augment.time_mask_ratio=0.9"], ["masks"]),
        (["model=tdnn", "model.stem_channels=[4,4,4,4,4]", "model.stem_time_strides=[2,2,2,2,2]"], ["too-few-frames"]),
        (["data.val_size=2"], ["small-validation"]),
    ],
    ids=lambda given: "+".join(given) or "nothing",
)
def test_a_recipe_that_cannot_learn_is_known_before_its_first_step(broken: list[str], codes: list[str]) -> None:
    assert known_before(*GOOD, *broken) == codes


def write_broken(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the samples of every recording in a folder."""
    for path in folder.rglob("*.wav"):
        samples, rate = soundfile.read(path, dtype="float32")
        soundfile.write(path, change(samples), rate)


def test_recordings_and_texts_that_teach_nothing_are_known_before_the_first_step(corpus: Callable[..., Path]) -> None:
    texts = ["he hoped there would be stew"] * 8
    root = corpus(texts)
    corpus([text.upper() for text in texts[:4]], "capitals.jsonl")
    corpus(["0123456789"] * 4, "digits.jsonl")
    given = ["data=manifest", f"data.root={root}", "features=logmel_8k", "model=mlp", "tracking=[]", "data.feature_cache=null"]
    write_broken(root, lambda samples: samples * np.abs(np.sin(np.arange(len(samples)) / 500)).astype(np.float32))
    assert known_before(*given, "data.val=capitals.jsonl") == ["case"]
    assert known_before(*given, "data.val=digits.jsonl") == ["no-overlap"]
    write_broken(root, lambda samples: np.clip(50 * samples, -1, 1))
    assert known_before(*given, "data.val=null", "objective.metric=train/loss") == ["clipping"]
    write_broken(root, lambda samples: 0 * samples)
    assert known_before(*given, "data.val=null", "objective.metric=train/loss") == ["silence"]
    (root / "capitals.txt").write_text("\n".join(sorted({*"HE", *"HOPED"})))
    listed = ["tokenizer=list", f"tokenizer.vocabulary_file={root / 'capitals.txt'}", "data.normalize=[nfc,spaces]"]
    corpus(["h o p e d"] * 4, "letters.jsonl")
    with pytest.raises(DataError, match="no utterance is left to train on"):
        known_before(*given, *listed, "data.train=letters.jsonl", "data.val=null", "objective.metric=train/loss")


def test_what_a_part_of_the_texts_lacks_the_whole_may_hold(corpus: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_MOST_TEXTS", 4)
    texts = [f"{letter * 4} {letter * 4}" for letter in "abcdefghijkl"]
    root = corpus(texts)
    corpus(texts[::-1], "valid.jsonl")
    given = ["data=manifest", f"data.root={root}", "data.val=valid.jsonl", "features=logmel_8k", "model=mlp", "data.feature_cache=null"]
    assert "no-overlap" not in known_before(*given)


@pytest.mark.parametrize(("part", "codes"), [("encoder", []), ("head", ["frozen-head"])])
def test_a_frozen_head_is_named_and_a_frozen_encoder_is_not(part: str, codes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    freeze(monkeypatch, part)
    assert known_before(*GOOD) == codes


def test_a_model_of_which_nothing_is_trained_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    freeze(monkeypatch, "encoder", "head")
    with pytest.raises(ConfigError, match="Mlp has no parameter that is trained: all of them are frozen"):
        speechtrain.train(speechtrain.compose(GOOD, output_dir=Path("frozen")))


def freeze(monkeypatch: pytest.MonkeyPatch, *parts: str) -> None:
    """Have models built with frozen parts, as classes of a user's own may build theirs."""
    build = TorchBackend.build

    def frozen(*args: Any, **kwargs: Any) -> Any:
        model = build(*args, **kwargs)
        for part in parts:
            getattr(model, part).requires_grad_(False)
        return model

    monkeypatch.setattr(TorchBackend, "build", frozen)


def test_texts_that_are_not_said_are_told_in_the_terminal_in_the_trackers_and_afterwards(
    parts: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = ["data=custom", f"data._target_={parts}.Mixed", "+tracking.mine._target_=broken_parts.Notes"]
    words = [word for word in GOOD if not word.startswith("data")]
    speechtrain.train(speechtrain.compose([*words, *mixed, "data.batch_size=8"], output_dir=Path("run")))
    assert "nothing-learnt: train/loss is" in caplog.text
    assert "100% of the validation texts nothing is recognised" in caplog.text
    assert "-> more steps: trainer.epochs" in caplog.text
    assert caplog.text.count("nothing-learnt") == 1
    assert "speechtrain.diagnosis=nothing-learnt" in Path("tags.txt").read_text().splitlines()
    assert DIAGNOSIS in Path("files.txt").read_text()
    assert [each["code"] for each in json.loads(Path("run", DIAGNOSIS).read_text())["findings"]] == ["nothing-learnt"]
    capsys.readouterr()
    assert diagnose.run(["run"]) == 1
    said = capsys.readouterr().out
    for figure in ("steps       128 of 128", "is what a guess by token frequencies gets", "100% of the validation texts", "nothing-learnt"):
        assert figure in said


def test_a_good_run_is_not_accused_and_is_told_to_be_good(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], parts: str
) -> None:
    tracked = ["+tracking.mine._target_=broken_parts.Notes", "optimizer.lr=1e-2"]
    result = speechtrain.train(speechtrain.compose([*GOOD, *tracked], output_dir=Path("run")))
    assert result.metrics["val/cer"] < 0.9
    assert [record for record in caplog.records if record.name == "speechtrain.training.watch"] == []
    assert "diagnosis" not in Path("tags.txt").read_text()
    assert diagnose.run(["from=run"]) == 0
    assert "nothing is found that keeps it from learning" in capsys.readouterr().out
    history = Path("run", HISTORY)
    whole = history.read_text()
    history.write_text("".join(whole.splitlines(keepends=True)[:1]))  # as it was after its first epoch
    assert diagnose.run(["run"]) == 0
    assert "steps are too few to judge by" in capsys.readouterr().out
    history.write_text(whole)
    for fold in range(2):
        shutil.copytree("run", Path("folds", f"fold_{fold}"))
    shutil.copy("run/run.json", "folds")
    Path("folds/fold_2").mkdir()  # it has not made its first step
    Path("folds/fold_notes.txt").write_text("mine")
    assert diagnose.run(["folds"]) == 0, "of a cross-validation each fold is judged"
    assert capsys.readouterr().out.count("nothing is found that keeps it from learning") == 2


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_becomes_no_number_is_named_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    broken = ["optimizer=sgd", "optimizer.lr=1e9", "trainer.gradient_clip_val=null", "trainer.max_skipped_steps=1"]
    with pytest.raises(NonFiniteLossError):
        speechtrain.train(speechtrain.compose([*GOOD, *broken], output_dir=Path("run")))
    assert diagnose.run(["run"]) == 1
    assert "not-finite\n    the loss became NaN or infinite in epoch" in capsys.readouterr().out


def test_runs_that_cannot_be_judged_say_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="RUN: no run 'last'"):
        diagnose.run([])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="has not begun to train, or an earlier version trained it"):
        diagnose.run(["run"])
    for damage in ("[" * 5000, '{"facts": {"lr": "fast"}}', '{"facts": null}', "[]"):
        Path("run", DIAGNOSIS).write_text(damage)
        with pytest.raises(UserError, match="cannot be read"):
            diagnose.run(["run"])
    with pytest.raises(ConfigError, match="is not one run"):
        diagnose.run(["a", "b"])


@pytest.fixture
def watched() -> tuple[facts.Facts, History]:
    """What is known of a good recipe before its first step, and its empty history."""
    cfg = ExperimentConfig.of(speechtrain.compose(GOOD, output_dir=Path("run")))
    run = steps.build_experiment(cfg, Path("run"), steps.build_backend(cfg), prepare(cfg, threads=1))
    return gather(run, steps.make_loaders(run)[0]), History(run.task.direction)


def test_what_was_found_before_a_run_was_resumed_is_taken_back_in_the_trackers_too(
    watched: tuple[facts.Facts, History], parts: str
) -> None:
    from broken_parts import Notes

    Path("run").mkdir()
    watch = DiagnosisCallback(*watched, RunRecorder({"mine": Notes()}, Path("run")))
    watch.on_train_start(3, 0)
    assert not Path("tags.txt").exists()
    Path("run", DIAGNOSIS).write_text('{"findings": [{"code": "nothing-learnt"}]}')
    resumed = DiagnosisCallback(*watched, RunRecorder({"mine": Notes()}, Path("run")))
    resumed.on_train_start(3, 1)
    resumed.on_train_start(3, 1)
    assert Path("tags.txt").read_text() == "speechtrain.diagnosis=none\n"
    assert DIAGNOSIS in Path("files.txt").read_text()


def test_a_long_epoch_is_judged_before_it_is_over(watched: tuple[facts.Facts, History], caplog: pytest.LogCaptureFixture) -> None:
    known, history = watched
    watch = DiagnosisCallback(replace(known, steps=9000, epoch_steps=3000), history, RunRecorder({}, Path("run")))
    watch.on_train_start(3, 0)
    watch.on_epoch_start(0)
    for index in range(2000):
        watch.on_batch_end(0, index, 3000, 40.0 if index else 50.0, 1e-6)
    assert "worse-than-a-guess: train/loss is 40 after 2000 steps" in caplog.text
