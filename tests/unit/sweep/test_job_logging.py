from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from speechtrain.sweep.trial import job_logging
from speechtrain.sweep.trial.job_logging import JobLogging


@pytest.fixture(autouse=True)
def _root() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = before, level


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Collect what Hydra sets up."""
    calls: list[object] = []
    hydras = job_logging.configure_log
    monkeypatch.setattr(job_logging, "configure_log", lambda *arguments: (calls.append(arguments), hydras(*arguments)))
    return calls


def hydra_of(file: Path, level: str = "INFO", **more: str) -> DictConfig:
    to_file = {"class": "logging.FileHandler", "formatter": "short", "filename": "${output}/job.log"}
    console = {"class": "logging.StreamHandler", "formatter": "short", "stream": "ext://sys.stdout"}
    root = {"level": level, "handlers": ["console", "file"]}
    config = {"version": 1, "formatters": {"short": {"format": "%(message)s"}}, "handlers": {"console": console, "file": to_file}}
    hydra = OmegaConf.create(
        {**more, "output": str(file.parent), "job_logging": {**config, "root": root, "disable_existing_loggers": False}}
    )
    hydra.verbose = False
    return hydra


def log_three(logs: JobLogging, tmp_path: Path, between=lambda _number: None, **changes: str) -> list[str]:
    for number in range(3):
        (tmp_path / str(number)).mkdir(exist_ok=True)
        changed = changes if number == 2 else {}
        logs.configure(hydra_of(tmp_path / str(number) / "job.log", **changed), tuple(changed.values()))
        logging.getLogger("job").info("number %d", number)
        between(number)
    return [(tmp_path / str(number) / "job.log").read_text() for number in range(3)]


def test_each_job_logs_to_its_own_file_and_logging_is_set_up_once(tmp_path, set_up):
    assert log_three(JobLogging(), tmp_path) == ["number 0\n", "number 1\n", "number 2\n"]
    assert len(set_up) == 1


def test_a_handler_that_no_logger_has_is_set_up_as_by_hydra(tmp_path, set_up):
    logs = JobLogging()
    for _ in range(3):
        hydra = hydra_of(tmp_path / "job.log")
        hydra.job_logging.root.handlers = ["console"]
        logs.configure(hydra, ())

    assert len(set_up) == 3


def test_another_level_sets_logging_up_anew(tmp_path, set_up):
    assert log_three(JobLogging(), tmp_path, level="WARNING") == ["number 0\n", "number 1\n", ""]
    assert len(set_up) == 2


@pytest.mark.parametrize("where", ["", "elsewhere"])
def test_what_a_program_opens_is_closed_as_by_hydra(tmp_path, set_up, where):
    opened = []

    def add(_number: int) -> None:
        opened.append(logging.FileHandler(tmp_path / "more.log"))
        logging.getLogger(where).addHandler(opened[-1])

    assert log_three(JobLogging(), tmp_path, add) == ["number 0\n", "number 1\n", "number 2\n"]
    assert len(set_up) == 3
    assert [handler.stream is None for handler in opened] == [True, True, False]
    logging.getLogger("elsewhere").handlers.clear()


def test_a_level_that_a_program_sets_is_set_back_as_by_hydra(tmp_path, set_up):
    assert log_three(JobLogging(), tmp_path, lambda _: logging.getLogger().setLevel(logging.ERROR))[2] == "number 2\n"
    assert len(set_up) == 3


def test_a_level_that_follows_from_another_value_of_the_job_is_set_up_for_each(tmp_path, set_up):
    logs = JobLogging()
    for level in ("INFO", "WARNING"):
        logs.configure(hydra_of(tmp_path / "job.log", "${chosen}", chosen=level), ())

    assert len(set_up) == 2
    assert logging.getLogger().level == logging.WARNING


def test_a_console_that_was_replaced_is_set_up_anew(tmp_path, set_up, monkeypatch):
    log_three(JobLogging(), tmp_path, lambda number: monkeypatch.setattr(sys, "stdout", (tmp_path / f"{number}.txt").open("w")))

    assert len(set_up) == 3
    assert [(tmp_path / f"{number}.txt").read_text() for number in range(3)] == ["number 1\n", "number 2\n", ""]
