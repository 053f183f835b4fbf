"""Interrupts that are raised, that wait, and that Python or a library loses."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechtrain.processes import fresh, interrupts


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    interrupts.forget()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_while_an_end_is_written_down(number: signal.Signals) -> None:
    interrupts.listen()
    with interrupts.deferred():
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert interrupts.is_waiting()
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()
    interrupts.check()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_a_notebooks_ctrl_c_waits_too_and_its_handlers_come_back() -> None:
    handlers = [signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(signal.SIGTERM)]
    with interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
    assert interrupts.forget()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == handlers[1]


def ended(program: str) -> tuple[int, str]:
    """The exit code and the errors of a program that runs a command."""
    lines = "import os, signal, sys\nfrom speechtrain.processes import interrupts\n"
    done = subprocess.run([sys.executable, "-c", lines + program], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_signal_that_comes_when_a_command_has_ended_changes_its_exit_code() -> None:
    assert ended("with interrupts.command(): pass\nos.kill(os.getpid(), signal.SIGTERM)\nprint('done')") == (130, "")
    assert ended("import atexit\nwith interrupts.command(): atexit.register(os.kill, os.getpid(), signal.SIGINT)") == (130, "")
    assert ended("with interrupts.command(): pass") == (0, "")


def test_a_signal_that_a_library_swallows_ends_the_command_all_the_same() -> None:
    swallowing = "    try: os.kill(os.getpid(), signal.SIGTERM)\n    except KeyboardInterrupt: pass\n"
    caught = "try:\n  with interrupts.command():\n" + swallowing + "except KeyboardInterrupt: sys.exit(interrupts.EXIT_CODE)"
    assert ended(caught) == (130, "")


def test_a_signal_that_comes_inside_a_callback_of_the_garbage_collector_leaves_no_trace() -> None:
    kept = "import weakref\nclass Thing: pass\nthing = Thing()\nkept = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))\n"
    caught = "try:\n  with interrupts.command():\n    del thing\nexcept KeyboardInterrupt: sys.exit(interrupts.EXIT_CODE)"
    assert ended(kept + caught) == (130, "")
    other = "class Bad:\n  def __del__(self): raise ValueError('told')\nwith interrupts.command(): Bad()"
    assert "ValueError: told" in ended(other)[1]


def test_ctrl_c_interrupts_a_function_in_a_process_of_its_own_which_ends_in_order() -> None:
    assert fresh.call(signal.getsignal, signal.SIGINT) == interrupts._interrupt


def test_a_module_of_the_users_that_is_run_has_pythons_own_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import speechtrain")
    (tmp_path / "mine" / "go.py").write_text("import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)")
    done = subprocess.run([sys.executable, "-m", "mine.go"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
