"""Cross-validation as a command: folds under their run, resumed fold by fold, in sweeps too."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from conftest import TINY
from mlflow import MlflowClient

import speechtrain
from speechtrain.errors import DataError, RunPruned

pytestmark = pytest.mark.long

Command = Callable[..., subprocess.CompletedProcess[str]]

FOLDS = [item for item in TINY if item != "tracking=[]"] + ["model=mlp", "trainer.epochs=2", "data.folds=3", "data.fold_by=utterance"]
FOLDS += ["tracking.mlflow.log_model=false"]


def runs_in(folder: Path):  # type: ignore[no-untyped-def]
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return client.search_runs([each.experiment_id for each in client.search_experiments()])


def test_folds_stand_under_their_run_and_their_mean_is_its_result(command: Command, tmp_path: Path) -> None:
    done = command(*FOLDS, "hydra.run.dir=cv")
    assert done.returncode == 0, done.stderr
    runs = runs_in(tmp_path)
    whole = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    folds = sorted((run for run in runs if run is not whole), key=lambda run: run.data.tags["speechtrain.fold"])
    assert [run.data.tags["speechtrain.fold"] for run in folds] == ["1/3", "2/3", "3/3"]
    assert {run.data.tags["mlflow.parentRunId"] for run in folds} == {whole.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for name in ("test/loss", "test/cer"):
        values = [run.data.metrics[name] for run in folds]
        assert len(set(values)) > 1 or name == "test/cer"
        assert whole.data.metrics[name] == pytest.approx(statistics.fmean(values))
        assert whole.data.metrics[f"{name}_std"] == pytest.approx(statistics.stdev(values))
    best = [run.data.metrics["values/best val cer"] for run in folds]
    known = json.loads((tmp_path / "cv" / "run.json").read_text())
    assert known["objective"] == pytest.approx(statistics.fmean(best))
    assert known["status"] == "FINISHED"
    assert "deviation" in done.stdout
    assert len({run.data.tags["data.fingerprint.val"] for run in folds}) == 3
    assert len({run.data.tags["data.fingerprint.test"] for run in folds}) == 1


@pytest.mark.slow
def test_a_killed_cross_validation_goes_on_in_the_fold_it_was_in(command: Command, tmp_path: Path) -> None:
    options = [*FOLDS, "tracking=[]", "trainer.epochs=4"]
    options.remove("tracking.mlflow.log_model=false")
    whole = speechtrain.train(speechtrain.compose(options, output_dir=tmp_path / "whole"))
    (tmp_path / "killer.py").write_text(
        "import os, signal, sys\n"
        "from speechtrain.backends.base import Callback\n"
        "import speechtrain.training.console as p\n"
        "class Killer(p.ConsoleProgress):\n"
        "    started = 0\n"
        "    def on_train_start(self, *rest):\n"
        "        super().on_train_start(*rest)\n"
        "        Killer.started += 1\n"
        "    def on_batch_end(self, epoch, *rest):\n"
        "        if Killer.started == 2 and epoch == 2:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "p.ConsoleProgress = Killer\n"
        "from speechtrain.__main__ import main\n"
        "main()\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    killed = subprocess.run(
        [sys.executable, "killer.py", *options, "hydra.run.dir=outputs/day/cv"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "outputs" / "day" / "cv"
    assert [(folder / f"fold_{fold}").exists() for fold in range(3)] == [True, True, False]
    before = (folder / "fold_0" / "history.jsonl").stat().st_mtime_ns
    done = command("resume=last")
    assert done.returncode == 0, done.stderr
    assert "fold 1 of 3 (finished before)" in done.stdout
    assert "going on with epoch 3 of 4" in done.stdout
    assert (folder / "fold_0" / "history.jsonl").stat().st_mtime_ns == before
    assert json.loads((folder / "run.json").read_text())["objective"] == whole.objective
    for fold in range(3):
        one, two = (read_metrics(path / f"fold_{fold}") for path in (tmp_path / "whole", folder))
        assert one == two


def read_metrics(folder: Path) -> dict[str, float]:
    known = json.loads((folder / "run.json").read_text())["metrics"]
    return {name: value for name, value in known.items() if not name.startswith("time/") and not name.endswith("_per_s")}


def test_one_fold_can_be_trained_alone_and_is_the_same_as_in_the_whole(tmp_path: Path) -> None:
    options = [item for item in FOLDS if not item.startswith("tracking")] + ["tracking=[]"]
    whole = speechtrain.train(speechtrain.compose(options, output_dir=tmp_path / "whole"))
    alone = speechtrain.train(speechtrain.compose([*options, "data.fold=1"], output_dir=tmp_path / "alone"))
    assert read_metrics(tmp_path / "whole" / "fold_1") == {
        name: value for name, value in alone.metrics.items() if not name.startswith("time/") and not name.endswith("_per_s")
    }
    assert whole.metrics["test/loss"] != alone.metrics["test/loss"]
    with pytest.raises(DataError, match=r"data.fold_by=speaker needs a speaker for each utterance"):
        speechtrain.train(speechtrain.compose([*options, "data.fold_by=speaker"], output_dir=tmp_path / "wrong"))


def test_what_is_asked_after_each_fold_may_end_the_rest(tmp_path: Path) -> None:
    options = [item for item in FOLDS if not item.startswith("tracking")] + ["tracking=[]"]
    seen: list[int] = []

    def enough(results):  # type: ignore[no-untyped-def]
        seen.append(len(results))
        if len(results) == 2:
            raise RunPruned("enough")

    with pytest.raises(RunPruned, match="enough"):
        speechtrain.train(speechtrain.compose(options, output_dir=tmp_path / "cv"), after_fold=enough)
    assert seen == [1, 2]
    assert not (tmp_path / "cv" / "fold_2").exists()
    assert json.loads((tmp_path / "cv" / "run.json").read_text())["status"] == "KILLED"


@pytest.mark.slow
def test_a_sweep_judges_trials_by_their_mean_and_ends_hopeless_ones_after_their_first_folds(command: Command, tmp_path: Path) -> None:
    space = ["-m", *FOLDS, "objective.metric=val/loss", "optimizer.lr=0.003,0.005,0.004,1e-6", "hydra.sweeper.seeds_startup_trials=3"]
    done = command(*space, "hydra.sweeper.study_name=cv", "hydra.sweeper.pruner=none", "hydra.sweeper.sampler=null", "optimizer=adamw")
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name="cv", storage=_journal(tmp_path))
    by_rate = {trial.params["optimizer.lr"]: trial for trial in study.trials}
    assert len(by_rate) == 4
    hopeless = by_rate[1e-6] if by_rate[1e-6].number == 3 else None
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    for trial in complete:
        assert len(trial.user_attrs["fold_values"]) == 3
        assert trial.value == pytest.approx(statistics.fmean(trial.user_attrs["fold_values"]))
    if hopeless is not None:
        assert hopeless.state.name == "PRUNED"
        assert len(hopeless.user_attrs["fold_values"]) == 1
    runs = {run.info.run_id: run for run in runs_in(tmp_path)}
    folds = [run for run in runs.values() if "speechtrain.fold" in run.data.tags]
    assert len(folds) == 3 * len(complete) + (1 if hopeless is not None else 0)
    for run in folds:
        trial = runs[run.data.tags["mlflow.parentRunId"]]
        sweep = runs[trial.data.tags["mlflow.parentRunId"]]
        assert "mlflow.parentRunId" not in sweep.data.tags
    if hopeless is not None:
        assert any("of 3 folds" in run.data.tags.get("pruned", "") for run in runs.values())


def _journal(folder: Path):  # type: ignore[no-untyped-def]
    from speechtrain.sweep.study.storage import open_storage

    path = next((folder / "multirun").rglob("*.journal"))
    return open_storage(f"journal:///{path}")
