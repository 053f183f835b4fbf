"""One quota shared by two sweepers on every kind of storage, and studies that Optuna itself can open."""

from __future__ import annotations

import io
import json

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage

pytestmark = pytest.mark.long

POOL = ("hydra/launcher=pool", "hydra.sweeper.n_jobs=2")


def share_a_quota(toy, url: str) -> None:
    sweep = ["x=interval(-5,5)", "seconds=0.1", "hydra.sweeper.n_trials=20", f"hydra.sweeper.storage={url}", *POOL]
    both = [toy.start(*sweep), toy.start(*sweep)]

    assert [process.wait(90) for process in both] == [0, 0], (toy.folder / "output.txt").read_text()
    trials = toy.trials(url)
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(done) == 20
    others = [trial for trial in trials if trial.state.name != "COMPLETE"]
    assert all(trial.system_attrs["speechtrain:failure"] == {"surplus": True} for trial in others)  # never run
    assert sorted(int(line[1]) for line in toy.log("start")) == sorted(trial.number for trial in done)
    again = toy.run(*sweep)
    assert "nothing was left to do" in again.stdout, again.stdout + again.stderr


@pytest.mark.slow
def test_two_sweepers_share_one_quota_on_postgresql(toy, postgresql):
    share_a_quota(toy, postgresql)

    assert len(toy.trials(postgresql)) == 20


@pytest.mark.slow
def test_two_sweepers_share_one_quota_through_a_grpc_proxy(toy, grpc_proxy):
    share_a_quota(toy, grpc_proxy)


@pytest.mark.slow
def test_two_sweepers_share_one_quota_on_sqlite(toy):
    url = f"sqlite:///{toy.folder}/study.db"
    share_a_quota(toy, url)

    assert len(toy.trials(url)) == 20


def call_dashboard(storage: optuna.storages.BaseStorage, method: str, path: str, content: object = None) -> tuple[str, bytes]:
    """The status and the answer of a request to optuna-dashboard."""
    dashboard = pytest.importorskip("optuna_dashboard")
    body = json.dumps(content).encode()
    request = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "SERVER_NAME": "x",
        "SERVER_PORT": "80",
        "QUERY_STRING": "",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    answers: list[str] = []
    parts = dashboard.wsgi(storage)(request, lambda status, _headers, _info=None: answers.append(status))
    return answers[0], b"".join(parts)


def test_optuna_and_its_dashboard_open_the_same_study(toy):
    url = f"sqlite:///{toy.folder}/study.db"
    toy.run("x=interval(-5,5)", "n=choice(0,1)", "hydra.sweeper.n_trials=6", f"hydra.sweeper.storage={url}")

    study = optuna.load_study(study_name="toy", storage=url)
    assert len(study.trials) == 6
    assert study.best_value == min(trial.value for trial in study.trials)
    study.optimize(lambda trial: trial.suggest_float("x", -5, 5) ** 2 + trial.suggest_categorical("n", (0, 1)), n_trials=2)
    assert len(optuna.load_study(study_name="toy", storage=url).trials) == 8
    status, body = call_dashboard(optuna.storages.get_storage(url), "GET", "/api/studies")
    assert status == "200 OK"
    assert b"toy" in body


def test_optuna_and_its_dashboard_write_to_the_journal_beside_a_running_sweep(toy):
    """The recipes of docs/sweeps.md."""
    sweep = toy.start("x=interval(-5,5)", "seconds=0.1", "hydra.sweeper.n_trials=20", *POOL)
    toy.wait_for(lambda: len(toy.log("end")) >= 1)
    storage = JournalStorage(JournalFileBackend(str(toy.folder / "multirun/toy/study.journal")))
    study = optuna.load_study(study_name="toy", storage=storage)

    notes = 0
    while sweep.poll() is None:
        study.set_user_attr("note", notes)
        status, _ = call_dashboard(storage, "PUT", f"/api/studies/{study._study_id}/note", {"body": "x" * 5_000, "version": notes + 1})
        assert status.startswith("204")
        notes += 1

    assert sweep.returncode == 0, (toy.folder / "output.txt").read_text()
    assert [trial.state.name for trial in toy.trials()] == ["COMPLETE"] * 20
    assert notes > 1
    assert study.user_attrs["note"] == notes - 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql+psycopg://me:secret@127.0.0.1:1/nothing", "postgresql+psycopg://me:***@127.0.0.1:1/nothing cannot be used"),
        ("nonsense", "nonsense cannot be used"),
        ("mysql+nodriver://x/y", "cannot be used"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named_without_its_password(toy, url, words):
    done = toy.run("x=1,2", f"hydra.sweeper.storage='{url}'")

    assert done.returncode != 0
    assert words in done.stderr
    assert "secret" not in done.stdout + done.stderr.replace("overrides", "")


def test_a_study_of_another_space_is_not_mixed_up(toy):
    toy.run("x=1,2")

    done = toy.run("x=1,2,3")

    assert done.returncode != 0
    assert "the study 'toy' was started with choice(1, 2), now it is choice(1, 2, 3)" in done.stderr
    assert len(toy.trials()) == 2
