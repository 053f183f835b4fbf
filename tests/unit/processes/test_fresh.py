"""Calls of functions in fresh processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from speechtrain.errors import ConfigError, Problem
from speechtrain.processes.fresh import FreshCall, ProcessDiedError, call


def test_the_value_comes_from_another_process_with_the_variables_that_were_set() -> None:
    assert call(os.getpid) != os.getpid()
    assert call(os.getenv, "SPEECHTRAIN_TEST", environment={"SPEECHTRAIN_TEST": "seven"}) == "seven"
    assert "SPEECHTRAIN_TEST" not in os.environ
    assert call(np.arange, 3).tolist() == [0, 1, 2]


def test_modules_are_found_where_this_process_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_alone.py").write_text("def twice(x):\n    return 2 * x\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import mine_alone  # type: ignore[import-not-found]

    assert call(mine_alone.twice, 21) == 42


def test_an_error_is_raised_as_it_was_with_the_trace_of_a_defect() -> None:
    with pytest.raises(ZeroDivisionError) as defect:
        call(divmod, 1, 0)
    assert "fresh.py" in defect.value.__notes__[0]
    problem = Problem("data", "is missing")
    with pytest.raises(ConfigError) as mistake:
        call(fail_with, problem)
    assert mistake.value.problems == [problem]
    assert not hasattr(mistake.value, "__notes__")


def fail_with(problem: Problem) -> None:
    raise ConfigError([problem])


def test_a_process_that_dies_is_an_error_that_quotes_its_last_lines() -> None:
    with pytest.raises(ProcessDiedError, match=r"(?s)crashed with signal 9 and gave no result.*out of luck"):
        call(die, "out of luck", quiet=True)


def die(words: str) -> None:
    sys.stderr.write(words + "\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_call_that_takes_too_long_is_ended() -> None:
    slow = FreshCall(time.sleep, 60)
    with pytest.raises(TimeoutError, match=r"more than 0\.5 s"):
        slow.result(timeout=0.5)
    assert not slow.is_running()


def test_ctrl_c_ends_the_other_process_too(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\nfrom speechtrain.processes import interrupts\nfrom speechtrain.processes.fresh import call\n"
        "import test_fresh\ninterrupts.listen()\ncall(test_fresh.sleep_and_note, Path(sys.argv[1]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], stderr=subprocess.PIPE)
    while not (tmp_path / "started").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    assert (tmp_path / "ended").is_file()


def sleep_and_note(folder: Path) -> None:
    try:
        (folder / "started").touch()
        time.sleep(60)
    finally:
        (folder / "ended").touch()


def test_a_value_that_cannot_be_sent_is_said_to_be_so() -> None:
    from speechtrain.errors import RunError

    with pytest.raises(RunError, match="its result cannot be sent"):
        call(threading.Lock)


def test_a_call_goes_on_beside_this_process_until_its_result_is_asked_for() -> None:
    one, two = FreshCall(pow, 2, 10), FreshCall(pow, 3, 2)
    assert (one.result(), two.result()) == (1024, 9)
    assert not one.is_running()
