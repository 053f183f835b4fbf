"""A forked process cannot be told from one that started cold."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import psutil
import pytest

TELL = """
import json, os, signal, sys
signals = [number for number in signal.valid_signals() if isinstance(number, signal.Signals)]
print(json.dumps({
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "folder": os.getcwd(), "environment": dict(os.environ),
    "name": __name__, "parent": os.getppid(), "session": os.getsid(0) == os.getpid(), "stdin": sys.stdin.read(),
    "signals": {number.name: str(signal.getsignal(number)) for number in signals}, "mask": len(signal.pthread_sigmask(0, [])),
    "modules": [name for name in ("torch", "tensorflow", "speechtrain") if name in sys.modules],
}))
"""


def told(arguments: list[str], **options: Any) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, **options)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("kind", ["code", "script", "module"])
def test_it_has_the_arguments_the_folder_the_environment_and_the_files_that_it_is_given(tmp_path: Path, kind: str) -> None:
    (tmp_path / "tell.py").write_text(TELL)
    arguments = {"code": ["-c", TELL], "script": ["tell.py"], "module": ["-m", "tell"]}[kind]
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | {"ONE": "1", "PYTHONPATH": str(tmp_path / "more")}
    options = {"cwd": tmp_path, "env": environment, "input": "words", "start_new_session": True}
    fork = told([*arguments, "a", "b c"], **options)
    with forked.cold():
        cold = told([*arguments, "a", "b c"], **options)
    assert fork.pop("modules")[:1] == ["torch"]
    assert cold.pop("modules") == []
    assert fork == cold


def test_it_imports_the_package_itself() -> None:
    assert "speechtrain" not in told(["-c", TELL], input="")["modules"]


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("pass", 0),
        ("raise SystemExit", 0),
        ("raise SystemExit(300)", 300 % 256),
        ("import sys; sys.exit('a text')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(9)", 9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("import atexit; atexit.register(print, 'at the end')", 0),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('later'))).start()", 0),
    ],
)
def test_it_ends_alike(code: str, wanted: int) -> None:
    def ended() -> tuple[int, str, str]:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    fork = ended()
    with forked.cold():
        assert ended() == fork
    assert fork[0] == wanted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it(number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-u", "-c", "import time; print('there'); time.sleep(60)"], stdout=-1, stderr=-3, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(number)
    assert process.wait(20) == -number


def test_it_is_a_child_with_its_own_command_line_and_children_of_its_own(tmp_path: Path) -> None:
    inner = "import os, sys; print(os.getppid(), 'torch' in sys.modules)"
    (tmp_path / "outer.py").write_text(
        f"import os, subprocess, sys; print(os.getpid(), flush=True); subprocess.run([sys.executable, '-c', {inner!r}]); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "outer.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        assert process.stdout.readline() == f"{process.pid} True\n"
        found = psutil.Process(process.pid)
        assert found.ppid() == os.getpid()
        assert [word for word in found.cmdline() if word] == [sys.executable, "outer.py"]


def test_it_has_the_open_files_that_are_passed_to_it() -> None:
    end, begin = os.pipe()
    subprocess.run([sys.executable, "-c", f"import os; os.write({begin}, b'word')"], pass_fds=[begin], check=True)
    assert os.read(end, 4) == b"word"


@pytest.mark.slow
def test_a_command_that_names_keras_has_it_imported_on_tensorflow_unless_it_names_an_engine_too() -> None:
    assert told(["-c", TELL, "backend=keras"], input="")["modules"] == ["torch", "tensorflow"]
    assert told(["-c", TELL, "backend=keras", "backend.engine=torch"], input="")["modules"] == ["torch"]
    assert told(["-c", TELL, "backend=keras"], input="", env={**os.environ, "KERAS_BACKEND": "jax"})["modules"] == ["torch"]


@pytest.mark.parametrize(
    "different", [{"OMP_NUM_THREADS": "3"}, {"MKL_NUM_THREADS": "3"}, {"PYTHONHASHSEED": "1"}, {"PYTHONPATH": "hiding"}]
)
def test_what_libraries_read_while_they_are_imported_starts_it_cold(tmp_path: Path, different: dict[str, str]) -> None:
    (tmp_path / "hiding/torch").mkdir(parents=True)
    (tmp_path / "hiding/torch/__init__.py").touch()
    assert told(["-c", TELL], input="", env={**os.environ, **different})["modules"] == []


def test_what_libraries_wrote_into_the_environment_of_the_tests_does_not_start_it_cold() -> None:
    written = {
        "MKL_NUM_THREADS": os.environ["OMP_NUM_THREADS"],
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/there",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "KMP_INIT_AT_FORK": "FALSE",
    }
    assert told(["-c", TELL], input="", env={**os.environ, **written})["modules"] == ["torch"]


def test_a_fresh_database_of_mlflow_is_what_migrations_make_of_one(tmp_path: Path) -> None:
    found = []
    for name, environment in (("copied", {}), ("migrated", {"SPEECHTRAIN_TEST_MIGRATIONS": "1"})):
        code = f"import mlflow; mlflow.MlflowClient('sqlite:///{name}.db').search_experiments()"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, check=True)
        with contextlib.closing(sqlite3.connect(tmp_path / f"{name}.db")) as database:
            tables = sorted(name for (name,) in database.execute("select name from sqlite_master"))
            columns = {name: database.execute(f"pragma table_xinfo({name})").fetchall() for name in tables}
            found.append((columns, database.execute("select version_num from alembic_version").fetchall()))
    assert len(found[0][0]) > 40
    assert found[0] == found[1]


def test_a_worker_of_pytest_has_the_libraries_imported_and_forks_in_its_turn(tmp_path: Path) -> None:
    code = (
        "import json, subprocess, sys\ndef test_it():\n    assert 'torch' in sys.modules and 'speechtrain' not in sys.modules\n"
        f"    shown = subprocess.run([sys.executable, '-c', {TELL!r}], input=b'', capture_output=True)\n"
        "    assert 'torch' in json.loads(shown.stdout)['modules']\n"
    )
    (tmp_path / "test_here.py").write_text(code)
    (tmp_path / "conftest.py").write_text("import forked\ndef pytest_configure():\n    forked.install()\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "test_here.py"]
    environment = {**os.environ, "PYTHONPATH": str(Path(forked.__file__).parent), "PYTEST_ADDOPTS": ""}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        environment.pop(name, None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.cold
def test_what_is_marked_cold_starts_cold() -> None:
    assert told(["-c", TELL], input="")["modules"] == []
