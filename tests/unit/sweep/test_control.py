"""Signals to a study, what is known of it, and how it is found, on a journal without any sweeper process."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from speechtrain.errors import ConfigError, UserError
from speechtrain.processes.identity import Process
from speechtrain.sweep.__main__ import run
from speechtrain.sweep.reports.status import StatusReader
from speechtrain.sweep.reports.status_page import MOST_BYTES, page_of
from speechtrain.sweep.space.space import parse_space
from speechtrain.sweep.study import control
from speechtrain.sweep.study.attributes import BEAT, CANCEL, FAILURE, INTERRUPTED, JOB, RETRY_OF, complete, fail, prune, was_cancelled
from speechtrain.sweep.study.control import SignalReader, SweeperRecord, cancel, send
from speechtrain.sweep.study.find import find_study
from speechtrain.sweep.study.folder import own_folder
from speechtrain.sweep.study.samplers import sampler_factory
from speechtrain.sweep.study.storage import open_storage
from speechtrain.sweep.study.study import Study
from speechtrain.sweep.trial.context import TrialContext
from speechtrain.sweep.trial.handle import TrialCancelledError, TrialHandle, own_trial
from speechtrain.sweep.trial.outcome import Outcome


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of six trials in `multirun/asr`, all planned."""
    folder = tmp_path / "multirun" / "asr"
    url = f"journal:///{folder}/study.journal"
    own_folder(folder, "asr", url)
    return Study(
        url,
        open_storage(url),
        "asr",
        directions=["minimize"],
        space=parse_space(["x=interval(0,1)"], {}),
        settings={"hydra.sweeper.objectives": "val/wer"},
        make_sampler=sampler_factory(None, conditional=False),
        pruner=optuna.pruners.NopPruner(),
        first=[],
        n_trials=6,
        retries=1,
    )


def reader_of(study: Study) -> StatusReader:
    return StatusReader(study.storage, study.id, study.name, study.url)


def record(**changes: object) -> SweeperRecord:
    return replace(SweeperRecord(Process.current(), time.time(), time.time(), 60.0, 2, 6, 1), **changes)


GONE = replace(Process.current(), pid=2**22 - 1)
FAR = replace(Process.current(), host="elsewhere")


def test_a_sweeper_hears_the_last_signal_but_not_a_stop_from_before_it_began(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "READ_SECONDS", 0.0)
    running = SignalReader(study.storage, study.id)
    assert running.read().word == "run"
    send(study.storage, study.id, "stop")
    assert running.read().word == "stop"

    later = SignalReader(study.storage, study.id)
    assert later.read().word == "run"
    send(study.storage, study.id, "pause")
    assert (running.read().word, later.read().word) == ("pause", "pause")
    assert SignalReader(study.storage, study.id).read().word == "pause"
    send(study.storage, study.id, "run")
    assert later.read().word == "run"


def test_a_cancelled_trial_ends_at_its_next_report_and_is_neither_retried_nor_a_failure(study: Study) -> None:
    claimed = study.claim()
    assert claimed is not None
    with own_trial(TrialContext(study.url, "asr", claimed.id, claimed.number)) as trial:
        trial.report(0.5, 0)
        assert not trial.should_prune()
        assert cancel(study.storage, study.id, claimed.number) == "trial 0 ends at its next report"
        trial.report(0.4, 1)
        assert trial.should_prune()
        trial.end(Outcome(claimed.number, "pruned", reason="cancelled after epoch 2"))

    stored = study.trials()[0]
    assert was_cancelled(stored)
    assert stored.user_attrs["reason"].startswith("cancelled from ")
    ledger = study.ledger()
    assert not ledger.to_retry
    assert ledger.done == 1
    assert reader_of(study).read().counts["cancelled"] == 1
    with pytest.raises(UserError, match="trial 0 has ended: fail"):
        cancel(study.storage, study.id, 0)
    with pytest.raises(UserError, match="there is no trial 9\n    -> there are 0 to 0"):
        cancel(study.storage, study.id, 9)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Outcome(0, "done", value=0.5), TrialState.COMPLETE),
        (Outcome(0, "died", reason="exited with code 9"), TrialState.FAIL),
        (Outcome(0, "done"), TrialState.FAIL),
    ],
)
def test_a_trial_that_ends_before_it_sees_that_it_is_cancelled_keeps_its_result_if_it_has_one(
    study: Study, outcome: Outcome, state: TrialState
) -> None:
    claimed = study.claim()
    assert claimed is not None
    cancel(study.storage, study.id, 0)
    TrialHandle(TrialContext(study.url, "asr", claimed.id, 0)).record(outcome)

    stored = study.trials()[0]
    assert stored.state is state
    assert was_cancelled(stored) is (state is TrialState.FAIL)


def test_a_trial_that_waits_or_whose_process_died_is_cancelled_at_once_and_none_starts_it(study: Study) -> None:
    claimed, other = study.claim(), study.claim()
    assert claimed is not None
    assert other is not None
    study.storage.set_trial_system_attr(claimed.id, JOB, GONE.to_dict())
    assert cancel(study.storage, study.id, claimed.number) == "trial 0 is cancelled"
    optuna.load_study(study_name="asr", storage=study.storage).enqueue_trial({"x": 0.5})
    assert cancel(study.storage, study.id, 2) == "trial 2 is cancelled"
    assert [trial.number for trial in study.trials() if was_cancelled(trial)] == [0, 2]
    assert [claimed.number for claimed in iter(study.claim, None)] == [3, 4, 5]

    cancel(study.storage, study.id, other.number)  # before its job has begun
    with pytest.raises(TrialCancelledError), own_trial(TrialContext(study.url, "asr", other.id, other.number)):
        pass


def test_a_cancelled_trial_of_a_machine_that_fell_silent_is_not_run_again(study: Study) -> None:
    claimed = study.claim()
    assert claimed is not None
    study.storage.set_trial_system_attr(claimed.id, JOB, FAR.to_dict())
    assert cancel(study.storage, study.id, 0) == "trial 0 ends at its next report"
    study.claimed_ids.clear()
    study._watch.patience = -1.0
    study.fail_dead_trials(study.ledger())
    study.fail_dead_trials(study.ledger())

    assert was_cancelled(study.trials()[0])
    assert not study.ledger().to_retry


def test_the_status_tells_what_runs_where_what_failed_and_what_is_left(study: Study) -> None:
    trials = [study.claim() for _ in range(5)]
    ids = [trial.id for trial in trials if trial is not None]
    complete(study.storage, ids[0], [0.25])
    study.storage.set_trial_intermediate_value(ids[1], 0, 0.9)
    prune(study.storage, ids[1], "worse")
    fail(study.storage, ids[2], "RuntimeError: full\nmore")
    study.storage.set_trial_intermediate_value(ids[3], 2, 0.5)
    study.storage.set_trial_system_attr(ids[4], JOB, FAR.to_dict())
    study.storage.set_trial_system_attr(ids[4], BEAT, time.time() - 1000)
    reader = reader_of(study)
    assert (reader.read().left, reader.read().n_trials) == (None, None)  # no sweeper has told
    record().store(study.storage, study.id)

    status = reader.read()

    assert status.state == "running"
    counts = {
        "complete": 1,
        "pruned": 1,
        "paused": 0,
        "continued": 0,
        "failed": 1,
        "interrupted": 0,
        "cancelled": 0,
        "running": 2,
        "waiting": 0,
    }
    assert status.counts == counts
    assert (status.n_trials, status.left) == (6, 4)  # the one that failed is tried again
    assert status.seconds_left is not None
    assert [(each.number, each.epoch, each.value) for each in status.running] == [(3, 3, 0.5), (4, None, None)]
    assert status.running[1].host == "elsewhere"
    assert status.running[1].note.startswith("silent for 1")
    assert [(each.number, each.reason) for each in status.failures] == [(2, "RuntimeError: full")]
    assert [(each.number, each.values) for each in status.best] == [(0, [0.25])]
    assert json.loads(json.dumps(status.to_dict()))["counts"]["pruned"] == 1
    complete(study.storage, ids[3], [0.2])
    assert (reader.read().best[0].number, reader.read().counts["complete"]) == (3, 2)
    fail(study.storage, ids[4], INTERRUPTED, charged=False)
    assert (reader.read().counts["interrupted"], reader.read().counts["failed"]) == (1, 1)
    assert [each.number for each in reader.read().failures] == [2], "Ctrl-C is no failure"


def test_the_status_tells_trials_that_paused_and_those_that_are_continued_from_pruned_ones(study: Study) -> None:
    trials = [study.claim() for _ in range(3)]
    for trial, paused_at in zip(trials, (1, 1, None), strict=True):
        assert trial is not None
        study.storage.set_trial_intermediate_value(trial.id, 0, 0.9)
        prune(study.storage, trial.id, "others do better", paused_at=paused_at)
    reader = reader_of(study)
    assert [each.state for each in reader.read().ended] == ["pruned", "paused", "paused"]
    attributes = {RETRY_OF: 0}
    study.storage.create_new_trial(study.id, optuna.create_trial(state=TrialState.RUNNING, system_attrs=attributes))

    status = reader.read()

    assert [(each.number, each.state) for each in status.ended] == [(2, "pruned"), (1, "paused"), (0, "continued")]
    assert (status.counts["pruned"], status.counts["paused"], status.counts["continued"]) == (1, 1, 1)
    assert reader_of(study).read().counts == status.counts
    assert page_of(status).count('class="paused"') == 1


def test_where_all_complete_trials_are_equal_the_status_names_no_best_one(study: Study) -> None:
    for _ in range(2):
        trial = study.claim()
        assert trial is not None
        complete(study.storage, trial.id, [0.25])

    page = page_of(reader_of(study).read())

    assert "none: all complete trials have 25.00 %" in page


@pytest.mark.parametrize(
    ("changes", "word", "state"),
    [
        ({}, "run", "running"),
        ({}, "pause", "paused"),
        ({"began": 0.0}, "stop", "stopping"),
        ({"began": time.time() + 1000}, "stop", "running"),
        ({"process": GONE}, "run", "idle"),
        ({"process": FAR}, "run", "running"),
        ({"process": FAR, "beat": time.time() - 301}, "run", "idle"),
        ({"ended": "all trials are done", "n_trials": 0}, "run", "finished"),
        ({"ended": "it was interrupted"}, "run", "idle"),
    ],
)
def test_the_state_of_a_study_follows_from_signals_and_the_life_of_its_sweepers(
    study: Study, changes: dict[str, object], word: control.Word, state: str
) -> None:
    record(**changes).store(study.storage, study.id)
    send(study.storage, study.id, word)

    assert reader_of(study).read().state == state
    died = changes.get("process") is not None and state == "idle"
    assert ("its sweeper died" in reader_of(study).read().words) is died


def test_the_page_has_a_line_a_trial_stays_small_and_escapes_what_it_shows(study: Study) -> None:
    optuna_study = optuna.load_study(study_name="asr", storage=study.storage)
    floats = {f"group{index}.key": optuna.distributions.FloatDistribution(0, 1) for index in range(12)}
    claimed = study.claim()
    assert claimed is not None
    for _ in range(300):
        optuna_study.add_trial(optuna.create_trial(value=0.5, params=dict.fromkeys(floats, 0.123456), distributions=floats))
    fail(study.storage, claimed.id, "<script>")
    record().store(study.storage, study.id)

    page = page_of(reader_of(study).read())

    assert len(page.encode()) <= MOST_BYTES
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert 'http-equiv="refresh"' in page
    rows = page.count('class="complete"')
    assert f"; {300 - rows} earlier trials" in page
    assert not any(word in page for word in ("http://", "https://", "src=", "href="))


def test_a_study_is_found_by_its_name_its_folder_or_its_storage(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("asr", "last", "multirun/asr", f"{study.url}#asr"):
        assert find_study(name, "study").id == study.id
    assert find_study("asr", "study", study.url).id == study.id
    (tmp_path / "multirun" / "asr").rename(tmp_path / "moved")
    assert find_study("moved", "study").url == f"journal:///{tmp_path}/moved/study.journal"
    (tmp_path / "moved").rename(tmp_path / "multirun" / "asr")

    optuna.load_study(study_name="asr", storage=open_storage(study.url)).enqueue_trial({"x": 0.5})
    assert run(["status", "asr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["waiting"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status", "ars"], "there is no study 'ars'\n    -> did you mean 'asr'?"),
        (["status", "ars", "--storage=journal:///multirun/asr/study.journal"], "there is no study 'ars' in journal:///"),
        (["status", "x", "--storage=sqlite:///none.db"], "none.db"),
        (["status", "x", "--storage=mongo:///x"], "hydra.sweeper.storage: mongo:///x cannot be used"),
        (["staus", "asr"], "there is no 'staus'\n    -> did you mean 'status'?"),
        (["cancel", "asr", "one"], "TRIAL"),
        (["pause", "asr", "1"], "pause takes no trial"),
        (["pause", "asr", "--watch"], "--json and --watch belong to status"),
        (["status"], "STUDY"),
        ([], "WORD"),
    ],
)
def test_a_mistake_in_the_command_is_told(study: Study, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(words)
    assert message in str(caught.value)
    assert not (tmp_path / "none.db").exists()


def test_what_a_word_does_depends_on_whether_a_sweeper_lives(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "READ_SECONDS", 0.0)

    def answer(word: str) -> str:
        assert run([word, "asr"]) == 0
        return capsys.readouterr().out.strip()

    assert answer("stop") == "no sweeper works on this study, so none is to be stopped"
    assert answer("pause") == "no sweeper works on this study; its next command will wait"
    assert answer("resume") == "no sweeper works on this study; give its command again"
    claimed = study.claim()
    assert claimed is not None
    record(began=0.0).store(study.storage, study.id)
    assert answer("pause") == "no trial is started until `resume`; 1 that run come to their end"
    assert answer("resume") == "trials are started again"
    assert answer("cancel").splitlines()[0] == "trial 0 ends at its next report"
    assert reader_of(study).read().state == "stopping"
    assert FAILURE not in study.storage.get_trial(claimed.id).system_attrs


def test_a_trial_that_is_started_while_all_are_cancelled_is_cancelled_as_well(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    first = study.claim()
    record(began=0.0).store(study.storage, study.id)
    send_ = control.send

    def send_while_another_starts(*arguments: object) -> None:
        send_(*arguments)  # type: ignore[arg-type]
        study.claim()

    monkeypatch.setattr(control, "READ_SECONDS", 0.0)
    monkeypatch.setattr(control, "send", send_while_another_starts)
    run(["cancel", "asr"])

    assert first is not None
    assert [trial.number for trial in study.trials() if CANCEL in trial.system_attrs] == [0, 1]


def test_a_study_that_is_not_there_cannot_be_stopped(study: Study) -> None:
    with pytest.raises(ConfigError):
        run(["stop", "nothing"])
