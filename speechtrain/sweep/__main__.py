"""`python -m speechtrain.sweep`: look at a sweep and steer it, from any terminal or machine that sees its storage.

    python -m speechtrain.sweep status STUDY            state, best, running trials, failures, what is left
    python -m speechtrain.sweep status STUDY --watch    the same, renewed every two seconds until the sweep ends or Ctrl-C
    python -m speechtrain.sweep status STUDY --json     the same for scripts
    python -m speechtrain.sweep pause STUDY             no trial is started until it is resumed
    python -m speechtrain.sweep resume STUDY
    python -m speechtrain.sweep stop STUDY              no trial is started; the command ends when the running ones have
    python -m speechtrain.sweep cancel STUDY 12         trial 12 ends at its next report, and is not retried
    python -m speechtrain.sweep cancel STUDY            all that run end so, and the sweep stops

STUDY is a study's name in multirun/, last, its folder, or STORAGE_URL#NAME; with --storage=URL a name in that storage.
multirun/STUDY/status.html shows the same in a browser. Exit codes: 0 done, 2 there is no such study or trial.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from typing import TYPE_CHECKING, NoReturn

from speechtrain.app.command import run_command
from speechtrain.console import console, print_aligned
from speechtrain.errors import UserError, did_you_mean

if TYPE_CHECKING:  # they import Optuna, which a mistake on the command line does not wait for
    from speechtrain.sweep.reports.status import StatusReader
    from speechtrain.sweep.study.find import FoundStudy

WORDS = ("status", "pause", "resume", "stop", "cancel")
_WATCH_SECONDS = 2.0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}\n    -> python -m speechtrain.sweep --help shows what can be written")


def run(arguments: list[str]) -> int:
    """Do what the first word says with the study that the second one names, and return the exit code."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("word", metavar="WORD")
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument("trial", metavar="TRIAL", nargs="?", type=int)
    parser.add_argument("--storage", metavar="URL")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--watch", action="store_true")
    if arguments and not arguments[0].startswith("-") and arguments[0] not in WORDS:
        raise UserError(f"command line: there is no '{arguments[0]}'\n    -> {did_you_mean(arguments[0], WORDS)}")
    given = parser.parse_args(arguments)
    if given.word != "status" and (given.json or given.watch):
        parser.error("--json and --watch belong to status")
    if given.trial is not None and given.word != "cancel":
        parser.error(f"{given.word} takes no trial")
    from speechtrain.sweep.study.find import find_study

    study = find_study(given.study, "study", given.storage)
    from speechtrain.sweep.reports.status import StatusReader

    reader = StatusReader(study.storage, study.id, study.name, study.url)
    if given.word == "status":
        return _status(reader, as_json=given.json, watch=given.watch)
    from speechtrain.sweep.study import control

    status = reader.read()
    alive = [each for each in status.sweepers if each["state"] == "alive"]
    if given.word == "cancel" and given.trial is not None:
        console.print(control.cancel(study.storage, study.id, given.trial), markup=False)
        return 0
    word = {"pause": "pause", "resume": "run"}.get(given.word, "stop")
    if word == "pause" or alive:
        control.send(study.storage, study.id, word, given.word)  # type: ignore[arg-type]
    elif word == "run":
        control.send(study.storage, study.id, "run")
    if given.word == "cancel":
        _cancel_running(study, reader, stopped=bool(alive))
    console.print(_answer(given.word, bool(alive), status.counts["running"]), markup=False)
    return 0


def _cancel_running(study: FoundStudy, reader: StatusReader, *, stopped: bool) -> None:
    """Cancel what runs, once no sweeper starts another trial in place of one that ends, which those that were `stopped` have to read."""
    from speechtrain.sweep.study import control

    if stopped:
        time.sleep(1.5 * control.READ_SECONDS)
    for running in reader.read().running:
        with contextlib.suppress(UserError):  # it has ended meanwhile
            console.print(control.cancel(study.storage, study.id, running.number), markup=False)


def _answer(word: str, alive: bool, running: int) -> str:
    """Return what is to be expected after a word."""
    ends = f"{running} that run come to their end" if word != "cancel" else "those that run end at their next report"
    if word == "resume":
        return "trials are started again" if alive else "no sweeper works on this study; give its command again"
    if word == "pause":
        return f"no trial is started until `resume`; {ends}" if alive else "no sweeper works on this study; its next command will wait"
    return f"no trial is started; {ends}, then the command ends" if alive else "no sweeper works on this study, so none is to be stopped"


def _status(reader: object, *, as_json: bool, watch: bool) -> int:
    from rich.live import Live

    from speechtrain.sweep.reports.status import StatusReader
    from speechtrain.sweep.reports.status_page import table_of

    assert isinstance(reader, StatusReader)
    status = reader.read()
    if as_json:
        while True:
            print(json.dumps(status.to_dict(), default=str), flush=True)  # noqa: T201 # rich would fold and colour it
            if not watch or status.state not in ("running", "paused", "stopping"):
                return 0
            time.sleep(_WATCH_SECONDS)
            status = reader.read()
    if not watch:
        print_aligned(table_of(status))
        return 0
    with Live(table_of(status), console=console, auto_refresh=False) as live:
        while status.state in ("running", "paused", "stopping"):
            time.sleep(_WATCH_SECONDS)
            status = reader.read()
            live.update(table_of(status), refresh=True)
    return 0


if __name__ == "__main__":
    run_command(__doc__, run)
