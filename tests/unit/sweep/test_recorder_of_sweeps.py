"""The sweep's own run: brought up to date while it runs, shared by sweepers, honest about what it cost."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta

import optuna
import pytest
from mlflow import MlflowClient
from omegaconf import OmegaConf
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from studies import make_study

from speechtrain.sweep.reports import recorder
from speechtrain.sweep.reports.page import sweep_page
from speechtrain.sweep.reports.recorder import REPORT, SweepRecorder
from speechtrain.sweep.study.attributes import complete
from speechtrain.sweep.study.cost import COST, total_cost, trial_table
from speechtrain.sweep.study.results import Results
from speechtrain.sweep.study.study import Study
from speechtrain.sweep.trial.attempts import FOLDER, RUN_IDS

CFG = OmegaConf.create(
    {
        "tracking": {
            "mlflow": {"_target_": "speechtrain.tracking.mlflow.tracker.MlflowTracker", "experiment": "test", "system_metrics": None}
        },
        "trainer": {"fast_dev_run": False},
        "dry_run": False,
        "test_run": None,
        "report": {"enabled": None},
    }
)

NO_RESULTS = Results(["minimize"])


def finish_some(study: Study, count: int) -> None:
    for _ in range(count):
        claimed = study.claim()
        assert claimed is not None
        study.storage.set_trial_user_attr(claimed.id, COST, {"cpu_s": 3.6, "audio_s": 36.0, "epochs": 2, "planned_epochs": 2})
        complete(study.storage, claimed.id, [float(claimed.assignment["x"])])


def test_the_report_is_there_before_the_sweep_has_ended_and_does_not_hold_it_up(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "REPORT_SECONDS", 0.0)
    study = make_study(tmp_path)
    one = SweepRecorder(CFG, study, ["val/wer"], tmp_path, {"n_trials": 6}, ["x=interval(0,1)"])
    one.open()
    finish_some(study, 3)
    started = time.process_time()
    study.ledger()
    one.update(study.finished, NO_RESULTS)
    assert time.process_time() - started < 1.0  # the page is made by another process
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = one.parents["mlflow"]
    until = time.monotonic() + 60
    while REPORT not in {item.path for item in client.list_artifacts(run_id)} and time.monotonic() < until:
        time.sleep(0.2)
        one.update(study.finished, NO_RESULTS)
    run = client.get_run(run_id)
    assert REPORT in {item.path for item in client.list_artifacts(run_id)}
    assert run.info.status == "RUNNING"
    assert run.data.metrics["trials/complete"] == 3
    assert run.data.metrics["cost/cpu_h"] == pytest.approx(0.003)
    one.close("KILLED", study.finished, NO_RESULTS)
    assert client.get_run(run_id).info.status == "KILLED"


def test_sweepers_that_share_a_study_share_its_run(tmp_path):
    first = SweepRecorder(CFG, make_study(tmp_path), ["val/wer"], tmp_path, {}, [])
    second = SweepRecorder(CFG, make_study(tmp_path), ["val/wer"], tmp_path, {}, [])
    first.open()
    second.open()
    assert first.parents == second.parents
    for one in (first, second):
        one.close("FINISHED", [], NO_RESULTS)


def trial(state: TrialState, seconds: float, **spent: float) -> optuna.trial.FrozenTrial:
    found = create_trial(
        state=state,
        value=0.5 if state is TrialState.COMPLETE else None,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
        user_attrs={COST: spent} if spent else {"reason": "went wrong"},
    )
    found.datetime_start = datetime(2026, 1, 1)
    found.datetime_complete = found.datetime_start + timedelta(seconds=seconds)
    return found


def test_a_trial_that_paused_counts_as_pruned_until_it_is_continued():
    def attempt(number: int, state: TrialState, epochs: int, **attributes: int) -> optuna.trial.FrozenTrial:
        found = trial(state, 360.0 * epochs, epochs=epochs, planned_epochs=10)
        found.number = number
        found.system_attrs = {f"speechtrain:{name}": value for name, value in attributes.items()}
        found.user_attrs["reason"] = "others do better"
        return found

    paused = [attempt(0, TrialState.PRUNED, 1, paused=1), attempt(1, TrialState.PRUNED, 1, paused=1)]
    assert total_cost(paused).saved_hours == pytest.approx(1.8)

    further = [*paused, attempt(2, TrialState.PRUNED, 2, paused=3, retry_of=0)]
    cost = total_cost(further)
    assert cost.counts["pruned"] == 2
    assert cost.saved_hours == pytest.approx(0.9 + 0.7)
    done = [*further, attempt(3, TrialState.COMPLETE, 7, retry_of=2)]
    assert total_cost(done).counts == {"complete": 1, "pruned": 1, "failed": 0}
    assert total_cost(done).saved_hours == pytest.approx(0.9)
    reason = "paused: others do better"
    assert trial_table(done, ["val/wer"])["reason"][:3] == [f"{reason}, continued by trial 2", reason, f"{reason}, continued by trial 3"]


def test_what_pruning_saved_is_the_time_the_pruned_trials_would_have_gone_on():
    trials = [
        trial(TrialState.COMPLETE, 3600, cpu_s=3600, audio_s=7200, epochs=10, planned_epochs=10),
        trial(TrialState.PRUNED, 720, cpu_s=720, audio_s=1440, epochs=2, planned_epochs=10),
        trial(TrialState.FAIL, 36),
    ]
    cost = total_cost(trials)
    assert cost.counts == {"complete": 1, "pruned": 1, "failed": 1}
    assert cost.wall_hours == pytest.approx(1.21)
    assert cost.cpu_hours == pytest.approx(1.2)
    assert cost.audio_hours == pytest.approx(2.4)
    assert cost.saved_hours == pytest.approx(0.8)
    rows = trial_table(trials, ["val/wer"])
    assert rows["state"] == ["complete", "pruned", "fail"]
    assert rows["val/wer"] == [0.5, None, None]
    assert rows["reason"] == [None, None, "went wrong"]


def test_what_a_pruned_trial_reported_last_does_not_stand_under_the_objective():
    pruned = optuna.create_trial(state=TrialState.PRUNED, value=2.9, intermediate_values={0: 3.1, 1: 2.9})  # a loss, the objective is a WER

    rows = trial_table([trial(TrialState.COMPLETE, 36), pruned], ["val/wer"])

    assert rows["val/wer"] == [0.5, None]
    assert rows["last report"] == [None, 2.9]


@pytest.mark.parametrize("directions", [["minimize"], ["minimize", "maximize"]])
def test_a_page_can_be_made_of_any_study(directions):
    study = optuna.create_study(directions=directions, study_name="<b>study</b>")
    names = [f"metric{index}" for index in range(len(directions))]
    assert "No trial is complete." in sweep_page(study, names)
    space = {"x": FloatDistribution(0, 1), "n </script>": FloatDistribution(0, 1)}
    for index in range(6):
        values = [index / 6, 1 - index / 7][: len(directions)]
        study.add_trial(create_trial(values=values, params={"x": index / 6, "n </script>": 0.5}, distributions=space))
    page = sweep_page(study, names)
    assert "Timeline" in page
    assert ("Pareto front" in page) == (len(directions) > 1)
    assert "<b>study</b>" not in page
    assert "n </script>" not in page


@pytest.mark.parametrize(("objectives", "values"), [(["wer"], [1.0]), (["wer", "params"], [1.0, 3.0])])
def test_of_equal_trials_the_page_names_no_best_one_and_no_important_parameter(objectives, values):
    study = optuna.create_study(directions=["minimize"] * len(objectives))
    space = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    for number in range(4):
        study.add_trial(create_trial(values=values, params={"x": number / 4, "y": 0.5 - number / 8}, distributions=space))
    page = sweep_page(study, objectives)
    assert "All complete trials have the same result (wer 1" in page
    assert "Importance" not in page[page.index("<h2>Best") :]
    study.add_trial(create_trial(values=[0.5, *values[1:]], params={"x": 0.9, "y": 0.9}, distributions=space))
    page = sweep_page(study, objectives)
    assert "All complete trials" not in page
    assert "<h2>Importance" in page


def swept_study(values, *, pruned=(), directions=("minimize",), seconds=10.0):
    """A study of two parameters with these values, in which some trials were pruned at the second of four epochs."""
    study = optuna.create_study(directions=list(directions), study_name="swept")
    space = {"lr": FloatDistribution(1e-4, 1e-1, log=True), "x": FloatDistribution(0, 1)}
    start = datetime(2026, 1, 1)
    for number, value in enumerate(values):
        is_pruned = number in pruned
        epochs = 2 if is_pruned else 4
        added = create_trial(
            state=TrialState.PRUNED if is_pruned else TrialState.COMPLETE,
            values=list(value) if isinstance(value, tuple) else [value],
            params={"lr": 10 ** (-4 + 3 * number / len(values)), "x": (number * 0.37) % 1},
            distributions=space,
            intermediate_values={} if len(directions) > 1 else {epoch: value + 0.1 * (4 - epoch) for epoch in range(epochs)},
            user_attrs={COST: {"cpu_s": seconds * epochs, "epochs": epochs, "planned_epochs": 4}},
        )
        added.datetime_start, added.datetime_complete = start, start + timedelta(seconds=epochs)
        study.add_trial(added)
    return study


def test_a_page_of_one_objective_has_each_figure_with_a_sentence_and_is_small():
    page = sweep_page(swept_study([abs(number - 13) / 40 for number in range(20)], pruned=(15, 18)), ["val/wer"])
    headings = ["History", "Intermediate values", "Importance", "Parallel coordinates", "Slices", "Contours"]
    for heading in (*headings, "Distribution of values", "Cost of each trial", "Timeline"):
        assert re.search(rf"<h2>{heading}</h2>\n<p>\w[^<]+\.</p>\n<div class=\"figure\"><svg", page), heading
    assert "<script" not in page
    assert "val/wer, %" in page
    assert "The best value, 0.00 %, came with trial 13" in page
    assert re.search(r"explains \d+ % of the differences in val/wer \(\d+ to \d+ % in 8 resamplings", page)
    assert "Pruning saved 4 of 80 epochs, and with them 5 % of CPU time: 0.011 h" in page
    assert len(page) < 1_500_000


def test_a_page_of_several_objectives_has_the_front_and_how_its_hypervolume_grew():
    page = sweep_page(
        swept_study([(number / 10, (10 - number) ** 2) for number in range(10)], directions=("minimize", "minimize")), ["a", "b"]
    )
    assert "10 trials of 10 are on the front" in page
    assert re.search(r"<h2>Hypervolume</h2>\n<p>[^<]+trial \d had brought 99 % of it", page)
    assert "hypervolume, % of the last" in page


def test_trials_with_the_best_value_are_said_to_be_tied():
    page = sweep_page(swept_study([0.5, 0.2, 0.3, 0.2]), ["val/wer"])
    assert "Trials 1, 3 are tied" in page
    assert "tied" not in sweep_page(swept_study([0.5, 0.2, 0.3, 0.21]), ["val/wer"])


def test_the_page_counts_the_epochs_of_a_trial_from_1():
    study = optuna.create_study()
    study.add_trial(create_trial(value=0.5, intermediate_values={0: 0.9, 1: 0.7, 2: 0.5}))
    page = sweep_page(study, ["val/wer"])
    element = page[page.index("Intermediate values") : page.index("<h2>All trials")]
    assert ">epoch</text>" in element
    assert ">1</text>" in element
    assert ">0</text>" not in element


def test_the_run_of_a_trial_that_was_lost_with_its_machine_is_closed_from_here_where_its_folder_is_not(tmp_path):
    study = make_study(tmp_path)
    one = SweepRecorder(CFG, study, ["val/wer"], tmp_path, {"n_trials": 6}, ["x=interval(0,1)"])
    one.open()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_run(one.parents["mlflow"]).info.experiment_id
    runs = []
    for folder in (tmp_path / "elsewhere" / "0", tmp_path):
        claimed = study.claim()
        runs.append(client.create_run(experiment).info.run_id)
        study.storage.set_trial_user_attr(claimed.id, FOLDER, str(folder))
        study.storage.set_trial_user_attr(claimed.id, RUN_IDS, {"mlflow": runs[-1]})
        one.abandon_runs(claimed.number, "its node went away")

    until = time.monotonic() + 60
    while client.get_run(runs[0]).info.status != "FAILED":
        assert time.monotonic() < until
        time.sleep(0.1)
    assert client.get_run(runs[1]).info.status == "RUNNING"  # that of a folder that is here is closed by what lies in it
    one.close("FINISHED", [], NO_RESULTS)
