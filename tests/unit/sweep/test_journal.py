"""The journal of a study, locked against our own processes and against those that write it by Optuna alone."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileSymlinkLock
from optuna.testing.pytest_storages import StorageTestCase

from speechtrain.sweep.study.storage import JournalLocks, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> optuna.storages.BaseStorage:
    return open_storage(f"journal:///{tmp_path}/study.journal")


class TestJournalPassesOptunasOwnSuite(StorageTestCase):
    """Each test of `optuna.testing.pytest_storages`."""


def test_optuna_writes_to_a_study_at_rest_without_waiting_and_without_breaking_a_lock(tmp_path, storage, monkeypatch):
    optuna.create_study(storage=storage, study_name="ours")
    lock = JournalFileSymlinkLock(f"{tmp_path}/study.journal")
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("Optuna waits for a lock that nobody has"))

    lock.acquire()
    lock.release()

    assert not list(tmp_path.glob("*.rename"))


def test_nothing_is_written_while_optuna_has_its_lock_and_a_line_that_it_writes_is_left_whole(tmp_path, storage):
    study = optuna.create_study(storage=storage, study_name="ours")
    journal = tmp_path / "study.journal"
    theirs = JournalFileSymlinkLock(str(journal))
    theirs.acquire()
    before = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(before.splitlines(keepends=True)[-1][:20])
    writer = threading.Thread(target=study.set_user_attr, args=("key", "value"))
    writer.start()
    writer.join(0.2)

    assert journal.read_bytes() == before + before.splitlines()[-1][:20]
    with journal.open("ab") as file:
        file.write(before.splitlines(keepends=True)[-1][20:])
    theirs.release()
    writer.join(10)
    assert journal.read_bytes().startswith(before + before.splitlines(keepends=True)[-1])
    assert b'"value"' in journal.read_bytes().splitlines()[-1]


@pytest.mark.parametrize("left", ["by a process of ours that was killed", "by an earlier version"])
def test_a_lock_that_was_left_holds_nobody_up(tmp_path, storage, monkeypatch, left):
    study = optuna.create_study(storage=storage, study_name="ours")
    journal = tmp_path / "study.journal"
    if left == "by an earlier version":
        Path(f"{journal}.lock").touch()
        os.utime(f"{journal}.lock", (0, 0))
    else:
        child = os.fork()
        if not child:
            JournalLocks(journal).acquire()
            os._exit(0)
        os.waitpid(child, 0)
    assert os.path.lexists(f"{journal}.lock")
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("waits for a lock that nobody has"))

    study.set_user_attr("key", "value")

    assert not os.path.lexists(f"{journal}.lock")


def test_a_lock_that_another_process_broke_ends_nothing(tmp_path):
    lock = JournalLocks(tmp_path / "study.journal")
    lock.acquire()
    JournalFileSymlinkLock(f"{tmp_path}/study.journal").release()

    lock.release()
    lock.acquire()
    lock.release()
