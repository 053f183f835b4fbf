"""A run that is resumed with other values applies them or refuses them by name, and remembers them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY

import speechtrain
from speechtrain import compose
from speechtrain.backends.torch.checkpoint import read_weights
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.errors import ConfigError
from speechtrain.files import write_json
from speechtrain.tracking.mlflow.location import experiment_name, named_address
from speechtrain.tracking.mlflow.lookup import _place_of
from speechtrain.tracking.mlflow.tracker import MlflowTracker
from speechtrain.tracking.recorder import RunRecorder
from speechtrain.tracking.run_folder import note_places, read_run_file, write_run_file
from speechtrain.tracking.tensorboard import TensorBoardTracker
from speechtrain.training.resumed import (
    _problems,
    changes_of,
    check_unfinished,
    described,
    note_changes,
    with_tracking_of,
    with_values_of_the_start,
    without_newer_keys,
)
from speechtrain.training.steps import resolve_paths

SMALL = [*TINY, "model=mlp", "trainer.epochs=2", "scheduler=constant", "optimizer.lr=0.001", "optimizer.weight_decay=0"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    return speechtrain.train(compose(SMALL, output_dir=tmp_path / "run")).folder


def resumed(folder: Path, *overrides: str) -> ExperimentConfig:
    return ExperimentConfig.of(compose([*SMALL, *overrides, f"resume={folder}"], output_dir=folder))


def weights(folder: Path) -> float:
    """The sum of the absolute weights of a run's last epoch."""
    return float(sum(each.abs().sum() for each in read_weights(folder / "checkpoints" / "last.ckpt")[0].values()))


def test_optimizer_and_schedule_of_a_resumed_run_are_those_of_its_config_now(folder: Path) -> None:
    changed = ["trainer.epochs=4", "scheduler=plateau", "optimizer.lr=0.02", "optimizer.weight_decay=40"]
    before = weights(folder)
    result = speechtrain.train(resumed(folder, *changed).composed)
    assert [epoch["train/lr"] for epoch in result.history[:3]] == [0.001, 0.001, 0.02]
    assert weights(folder) < before / 2  # which such a decay leaves next to nothing of
    (noted,) = read_run_file(folder)["resumed"]
    assert noted["epoch"] == 3
    assert noted["changed"]["optimizer.lr"] == ["0.001", "0.02"]
    assert {key.partition(".")[0] for key in noted["changed"]} == {"optimizer", "scheduler", "trainer"}
    assert "was resumed at epoch 3 with" in next(iter(described(str(note_changes(folder, {})))))


@pytest.mark.slow
def test_what_cannot_be_applied_to_a_trained_model_is_refused_by_name_before_anything_is_written(folder: Path) -> None:
    before = (folder / "config.yaml").read_text()
    mistakes = {
        "model.stack=3": r"model.stack: is 3, but the run was trained with 2\n.*init_from=",
        "features.n_mels=20": r"features.n_mels: is 20, but",
        "optimizer=sgd": r"optimizer._target_: is .*SGD, but",
        "trainer.ema_decay=0.9": "trainer.ema_decay: is 0.9, but the run has no average",
        "trainer.find_lr=true": "trainer.find_lr: is true",
        "budget_minutes=80": r"budget_minutes: is 80.*, but what follows from it was chosen for null when the run began",
    }
    for override, told in mistakes.items():
        with pytest.raises(ConfigError, match=told):
            speechtrain.train(resumed(folder, "trainer.epochs=3", override).composed)
    assert (folder / "config.yaml").read_text() == before
    assert changes_of(resumed(folder)) == {}
    assert set(changes_of(resumed(folder, "optimizer.betas=[0.8,0.9]", "optimizer.fused=false"))) == {"optimizer.betas", "optimizer.fused"}


@pytest.mark.slow
def test_a_run_is_resumed_with_the_utterances_that_it_began_with(folder: Path) -> None:
    def refused(told: str) -> None:
        noted = [(folder / name).read_bytes() for name in ("config.yaml", "run.json")]
        with pytest.raises(ConfigError, match=told):
            speechtrain.train(resumed(folder, "trainer.epochs=3", "data.val_size=9").composed)
        assert [(folder / name).read_bytes() for name in ("config.yaml", "run.json")] == noted  # nor was its tracker opened

    before = read_run_file(folder)
    refused(r"^(?!.*the train data)(.|\n)*resume: the val data are not those(.|\n)*init_from=")
    write_run_file(folder, {"utterances": {**before["utterances"], "train": "0"}})
    refused("the train data are not those")
    earlier_version = {**before, "data": {**before["data"], "val": "0"}}
    del earlier_version["utterances"]
    write_json(folder / "run.json", earlier_version)
    refused("the val data are not those")
    write_json(folder / "run.json", {**earlier_version, "data": before["data"]})
    assert len(speechtrain.train(resumed(folder, "trainer.epochs=3", "data.check_hours=0", "data.test_size=9").composed).history) == 3


class _Kept(TensorBoardTracker):
    """A tracker that keeps runs where MLflow's does, and sends nothing."""

    place = MlflowTracker.place

    def __init__(self) -> None:
        self._named, self.experiment = named_address(None), experiment_name(None)


def test_a_run_goes_on_where_it_was_tracked_and_is_found_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tracked(*overrides: str) -> tuple[object, object]:
        options = [item for item in SMALL if not item.startswith("tracking")]
        cfg = ExperimentConfig.of(compose([*options, *overrides, f"resume={folder}"], output_dir=folder))
        node = with_tracking_of(cfg).tracking["mlflow"]
        return node["tracking_uri"], node["experiment"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cr3t-word@server:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "digits")
    RunRecorder({"mlflow": _Kept()}, folder).open()
    assert "s3cr3t" not in (folder / "run.json").read_text()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name)
    whole = ("http://me:s3cr3t-word@server:5000", "digits")
    assert tracked() == whole
    assert tracked("tracking.mlflow.tracking_uri=sqlite:///mine.db") == ("sqlite:///mine.db", None)
    assert _place_of([str(folder)], "runs", "tracking_uri") == dict(zip(("tracking_uri", "experiment"), whole, strict=True))

    monkeypatch.setenv("XDG_STATE_HOME", f"{folder}-of-another-user")
    with pytest.raises(ConfigError, match=r"me:\*\*\*@server:5000, whose password is not known here\n.*set MLFLOW_TRACKING_URI"):
        tracked()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole[0])
    with pytest.raises(ConfigError, match=r"1 problem(.|\n)*tracking.mlflow.experiment: in run.json of the run is 'digits'"):
        tracked()  # to this address it is sent anyway
    assert tracked("trust=true") == whole
    note_places(folder, {"mlflow": {"tracking_uri": "http://elsewhere"}})
    assert tracked()[0] == "http://elsewhere"
    write_run_file(folder, {"places_signature": "0"})
    with pytest.raises(ConfigError, match=r"http://elsewhere', to which it would be sent\n.*trust=true"):
        tracked()
    assert tracked("trust=true")[0] == "http://elsewhere"
    assert not _place_of([str(folder)], "runs", "tracking_uri")


@pytest.mark.slow
def test_keys_to_choose_that_data_or_model_lack_are_left_out_when_a_run_is_resumed(folder: Path) -> None:
    wanted = "choose=[data.val,data.split.by,features.n_mels,model.time_strides,model.channels,trainer.epochs]"
    cfg = with_values_of_the_start(resumed(folder, "features.n_mels=99", "trainer.epochs=7", wanted, "budget_minutes=1"))
    assert cfg.choose == []
    assert (cfg.features["n_mels"], cfg.trainer.epochs) == (resumed(folder).features["n_mels"], 2)
    assert (cfg.model, cfg.corpus) == (resumed(folder).model, resumed(folder).corpus)


def test_the_experiment_of_a_strangers_run_needs_trust_and_is_never_resolved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [item for item in SMALL if not item.startswith("tracking")]
    cfg = ExperimentConfig.of(compose([*options, f"resume={folder}"], output_dir=folder))

    def experiment(**values: object) -> object:
        changed = cfg.with_values({key.replace("__", "."): value for key, value in values.items()})
        return with_tracking_of(changed).tracking["mlflow"]["experiment"]

    monkeypatch.setenv("SECRET_OF_MINE", "hunter2")
    for name in ("${oc.env:SECRET_OF_MINE}", r"a\\${oc.env:SECRET_OF_MINE}", "theirs"):
        note_places(folder, {"mlflow": {"tracking_uri": "sqlite:///mlflow.db", "experiment": name}})
        assert experiment() == name
        for signature in ("0", "\u00e9", "\ud800", None):
            (folder / "run.json").write_text(json.dumps({**read_run_file(folder), "places_signature": signature}))
            with pytest.raises(ConfigError, match=r"tracking.mlflow.experiment: in run.json .*, to which it would be sent\n.*trust=true"):
                experiment()
        assert experiment(trust=True) == name
        assert experiment(tracking__mlflow__experiment="mine") == "mine"


def test_a_run_that_is_resumed_from_another_folder_goes_on_in_the_database_it_was_tracked_in(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [item for item in SMALL if not item.startswith("tracking")]
    cfg = ExperimentConfig.of(compose([*options, f"resume={folder}"], output_dir=folder))

    def address(tracking_uri: str | None = None) -> object:
        changed = cfg.with_values({"tracking.mlflow.tracking_uri": tracking_uri})
        return with_tracking_of(changed).tracking["mlflow"]["tracking_uri"]

    RunRecorder({"mlflow": _Kept()}, folder).open()
    began = Path.cwd() / "mlflow.db"
    began.touch()
    assert address() == "sqlite:///mlflow.db"
    (tmp_path / "another").mkdir()
    monkeypatch.chdir(tmp_path / "another")
    absolute = f"sqlite:///{began}"
    assert address() == address("sqlite:///mlflow.db") == absolute
    assert _place_of([str(folder)], "runs", "tracking_uri")["tracking_uri"] == absolute
    note_places(folder, {"mlflow": {"tracking_uri": absolute, "experiment": "speechtrain"}})  # as by the run that went on from here
    assert address() == absolute
    began.unlink()  # moved, as the folder of the run was
    assert address() == "sqlite:///mlflow.db"


@pytest.mark.slow
def test_folds_of_a_resumed_cross_validation_stay_as_they_were(tmp_path: Path) -> None:
    options = [*SMALL, "trainer.epochs=1", "data.folds=2", "data.fold_by=utterance"]
    folder = speechtrain.train(compose(options, output_dir=tmp_path / "folds")).folder
    write_run_file(folder, {"status": "KILLED"})
    before = [(folder / name).read_bytes() for name in ("config.yaml", "run.json")]
    mistakes = {
        "data.folds=3": "data.folds: is 3, but the run was trained with 2",
        "data.fold_by=speaker": "data.fold_by: is speaker, but the run was trained with utterance",
        "data.train_size=39": "the train data are not those that the run was trained with",
    }
    for override, told in mistakes.items():
        with pytest.raises(ConfigError, match=told):
            speechtrain.train(compose([*options, override, f"resume={folder}"], output_dir=folder))
    assert [(folder / name).read_bytes() for name in ("config.yaml", "run.json")] == before


@pytest.mark.slow
def test_keys_that_came_after_a_run_began_are_not_set_when_it_is_resumed(folder: Path) -> None:
    checkpoint = folder / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    stored = content["extra"]["config"]["features"]
    assert stored.pop("silence_db") == 60
    assert stored.pop("speech_db") == 25
    assert stored.pop("remove_dc")
    torch.save(content, checkpoint)
    with pytest.raises(ConfigError, match=r"1 problem.*\n  features\.remove_dc: is not known to the run that is resumed"):
        without_newer_keys(resumed(folder, "features.remove_dc=true"), ["features.remove_dc=true", "trainer.epochs=3"])
    cfg = without_newer_keys(resumed(folder, "trainer.epochs=3"), ["trainer.epochs=3"])
    assert {"silence_db", "speech_db", "remove_dc"}.isdisjoint(cfg.features)
    assert len(speechtrain.train(cfg.composed).history) == 3
    assert "remove_dc" not in (folder / "config.yaml").read_text()
    assert without_newer_keys(resumed(folder)).model == resumed(folder).model


@pytest.mark.parametrize("values", [("-inf", "0.1"), ("2.0.1", "2"), ("null", "0.9")])
def test_what_is_no_number_of_an_optimizer_is_refused(values: tuple[str, str]) -> None:
    (problem,) = _problems({"optimizer.momentum": values}, "last")
    assert problem.path == "optimizer.momentum"


def test_a_finished_run_says_so_and_what_makes_it_go_on(folder: Path) -> None:
    before = (folder / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"run is finished, after 2 epochs\n.*trainer.epochs=4 makes it go on"):
        speechtrain.train(resumed(folder, "optimizer.lr=0.1").composed)
    assert (folder / "config.yaml").read_text() == before
    check_unfinished(resumed(folder, "trainer.epochs=3"))
    with pytest.raises(ConfigError, match="dry_run: makes a test of a run, on less data, and the run that is resumed is none"):
        check_unfinished(resumed(folder, "trainer.epochs=3", "dry_run=true"))
    write_run_file(folder, {"status": "KILLED"})
    check_unfinished(resumed(folder))


def test_a_relative_folder_is_seen_from_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechtrain.files.launch_folder", lambda: tmp_path / "there")  # as with hydra.job.chdir=true
    cfg = resolve_paths(ExperimentConfig.of(compose([*SMALL])).with_values({"output_dir": "mine"}))
    assert cfg.output_dir == str(tmp_path / "there" / "mine")


def test_a_note_of_many_changes_fits_into_a_tag(tmp_path: Path) -> None:
    for _ in range(12):
        note = str(note_changes(tmp_path, {f"optimizer.group_{key}": ("0.001", "0.002") for key in range(60)}))
        assert len(note) <= 8000
        assert len(list(described(note))) == len(json.loads(note))
    assert next(iter(described(note))).endswith("55 more keys, which run.json has")
    assert len(read_run_file(tmp_path)["resumed"][0]["changed"]) == 60
    note = str(note_changes(tmp_path, {"data.root": ("", "x" * 9000)}))
    assert [each["changed"] for each in json.loads(note)] == [{}] * 13


def test_a_note_that_is_damaged_tells_nothing() -> None:
    for damaged in ("no json", "[1]", json.dumps([{"epoch": 1}]), json.dumps([{"epoch": 1, "changed": []}])):
        assert not list(described(damaged))
