"""Python commands as real processes that start in a tenth of a second.

Importing Lightning, MLflow and what they need costs 5 s of CPU time, and the tests start several hundred Python processes, many of them by
way of the program: workers of sweeps, MLflow writers, ranks. So pytest starts one process, the nursery, that imports these libraries once,
and forks, pytest's own workers among others, which have a nursery each. `install` puts it under `subprocess`:
`subprocess.run([sys.executable, "-m", "speechtrain", ...])` then starts a fork that has its own number, exit code, signals, session,
environment, folder, command line and files, that is a child of whoever started it, that imports `speechtrain` itself, and whose own Python
processes start in the same way.

A process starts cold, as it does outside the tests, if it does not run this interpreter, if its environment differs in what is read while
the libraries or Python start, if it hides one of the libraries, in a test marked `cold`, and everywhere with SPEECHTRAIN_TEST_COLD=1.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import inspect
import json
import logging
import os
import runpy
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("torch", "torchaudio", "lightning.pytorch", "lightning.pytorch.callbacks", "lightning.pytorch.loggers"),
    *("hydra", "hydra_plugins.hydra_joblib_launcher.joblib_launcher", "hydra_plugins.hydra_submitit_launcher.submitit_launcher"),
    *(
        "optuna",
        "mlflow",
        "mlflow.pyfunc",
        "mlflow.store.tracking.sqlalchemy_store",
        "mlflow.store.model_registry.sqlalchemy_store",
        "alembic",
        "lhotse",
        "jiwer",
        "soundfile",
        "soxr",
        "h5py",
        "rapidfuzz",
        "cloudpickle",
    ),
    *("pandas", "scipy.signal", "sklearn.metrics", "matplotlib.pyplot", "plotly.graph_objects", "jinja2", "rich", "filelock"),
)
"""What is imported before anything is forked. Keras is not among them: it reads its engine from the environment while it is imported."""

KERAS = ("keras",)
"""What is imported besides, on Keras' usual engine, TensorFlow, before commands are forked that name Keras and no engine."""

READ_AT_START = ("OMP_", "MKL_NUM_THREADS", "OPENBLAS_", "CUDA_VISIBLE", "LD_", "LC_", "LANG", "PYTHON", "TRITON_")
"""Beginnings of the names of environment variables that are read while libraries, or Python itself, start; but for PYTHONPATH.

Not those that libraries write themselves while they are at work in the tests' own process, such as TORCHINDUCTOR_CACHE_DIR.
"""

WORKER = "import sys;exec(eval(sys.stdin.readline()))"
"""What a worker of pytest-xdist is started with: `execnet.gateway_io.popen_bootstrapline`."""

EXECUTABLE = sys.executable
PLAIN = subprocess.Popen
PR_SET_CHILD_SUBREAPER = 36
ROOM = 16_384
"""Bytes for the command lines of forked processes."""


class Nursery:
    """The process that forks for this one: a child of it, and it ends with it."""

    current: Nursery | None = None
    with_keras: Nursery | None = None
    environment_at_start: Mapping[str, str] | None = None
    child: int | None = None
    allowed = not os.environ.get("SPEECHTRAIN_TEST_COLD")

    def __init__(self, connection: socket.socket, environment: Mapping[str, str], modules: Sequence[str], path: Sequence[str]) -> None:
        self.connection = connection
        self.environment = environment
        self.modules = set(modules)
        self.path = set(path)
        self.owner = os.getpid()
        self.lock = threading.Lock()

    @classmethod
    def start(cls, environment: Mapping[str, str]) -> Nursery:
        """A first one, in which the libraries are imported."""
        ours, theirs = socket.socketpair()
        here = str(Path(__file__).parent)
        code = f"import sys; sys.path.insert(1, {here!r}); import forked; forked.finish(forked.first({theirs.fileno()}))"
        with theirs:
            PLAIN(
                [EXECUTABLE, "-c", code, "x" * ROOM],
                cwd="/",
                env={**{name: value for name, value in environment.items() if name != "PYTHONPATH"}, "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        with ours.makefile("rb") as file:
            modules, path = json.loads(file.readline())
        return cls(ours, environment, modules, path)

    def branch(self, imports: Sequence[str]) -> Nursery:
        """Another one, forked from this, in which more is imported."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.fork({"imports": imports, "parent": os.getpid()}, [theirs.fileno()])
        with ours.makefile("rb") as file:
            modules, path = json.loads(file.readline())
        return Nursery(ours, self.environment, modules, path)

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Whether Python and the libraries would start alike in this environment."""
        names = {name for name in {*environment, *self.environment} if name.startswith(READ_AT_START) and name != "PYTHONPATH"}
        if any(value_of(name, environment) != value_of(name, self.environment) for name in names):
            return False
        hidden = self.modules | {"sitecustomize", "usercustomize"}
        for folder in set(environment.get("PYTHONPATH", "").split(os.pathsep)) - self.path:
            own = [path.stem for path in Path(folder).glob("*.py")] + [path.parent.name for path in Path(folder).glob("*/__init__.py")]
            if hidden & set(own):
                return False
        return True

    def fork(self, job: Mapping[str, Any], files: Sequence[int]) -> int:
        """The number of a new process.

        Raises:
            OSError: the nursery is gone.
        """
        ours, theirs = socket.socketpair()
        content = json.dumps(job).encode() + b"\n"
        with self.lock, ours:
            adopt(True)
            try:
                with theirs:
                    rights = array.array("i", [theirs.fileno(), *files])
                    self.connection.sendmsg([content[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                    self.connection.sendall(content[1:])
                number = ours.recv(16)
            finally:
                adopt(False)
        if not number:
            raise BrokenPipeError("no process was forked")
        return int(number)


def value_of(name: str, environment: Mapping[str, str]) -> str | None:
    """What a variable means to the libraries: those for linear algebra look for the threads of OpenMP where they have none of their own."""
    usual = environment.get("OMP_NUM_THREADS") if name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS") else None
    return environment.get(name, usual)


def adopt(wanted: bool) -> None:
    """Become the parent of descendants whose own parent ends, or leave them to the system again."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0):
        raise OSError("this system lets no process adopt others")


class Popen(PLAIN):  # type: ignore[type-arg, misc, valid-type]
    """`subprocess.Popen` with another way to start a child."""

    def _execute_child(self, *values: Any) -> None:
        given = inspect.signature(PLAIN._execute_child).bind(self, *values).arguments  # type: ignore[attr-defined]
        pid = fork(given)
        if pid is None:
            super()._execute_child(*values)
            return
        self.pid = pid
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")))


def fork(given: Mapping[str, Any]) -> int | None:
    """The number of a forked process for these arguments of `Popen._execute_child`; None if it has to start cold."""
    words, folder = given["args"], os.path.abspath(given["cwd"] or ".")  # noqa: PTH100 # a folder may not be there
    environment = dict(os.environ if given["env"] is None else given["env"])
    if isinstance(words, (str, bytes)) or words[0] != EXECUTABLE or not all(isinstance(word, str) for word in words):
        return None
    special = given["shell"], not given["close_fds"], *(given[name] is not None for name in ("preexec_fn", "uid", "gid", "gids"))
    if any(special) or not Path(folder).is_dir():
        return None
    options = [word for word in words[1:] if word != "-u"]
    if not options or (options[0].startswith("-") and options[0] not in ("-m", "-c")):
        return None
    nursery = nursery_of_this_process(words, environment) if Nursery.allowed else None
    if nursery is None or not nursery.suits(environment):
        return None
    passed = sorted(given["pass_fds"])
    job = {
        "words": words,
        "folder": folder,
        "environment": environment,
        "session": given["start_new_session"],
        "group": given.get("process_group", -1),
        "passed": passed,
        "ignored": [number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN],
        "parent": os.getpid(),
    }
    standard = [number if file == -1 else file for number, file in enumerate((given["p2cread"], given["c2pwrite"], given["errwrite"]))]
    with contextlib.suppress(OSError):  # a signal to the whole group has ended it
        return nursery.fork(job, [*standard, *passed])
    return None


@contextlib.contextmanager
def cold() -> Iterator[None]:
    """Start processes as they are started outside the tests."""
    before, Nursery.allowed = Nursery.allowed, False
    try:
        yield
    finally:
        Nursery.allowed = before


def install() -> None:
    """Start Python processes of this one by forking from now on."""
    if sys.platform == "linux" and not issubclass(subprocess.Popen, Popen):
        Nursery.environment_at_start = dict(os.environ)
        subprocess.Popen = Popen  # type: ignore[misc]


def nursery_of_this_process(words: Sequence[str], environment: Mapping[str, str]) -> Nursery | None:
    """The one that forks this command, started if there may be one; None in a forked process that is to have none."""
    if Nursery.current is None and Nursery.environment_at_start is not None:
        Nursery.current = Nursery.start(Nursery.environment_at_start)
        atexit.register(Nursery.current.connection.close)
        Nursery.environment_at_start = None
    if Nursery.current is None or Nursery.current.owner != os.getpid():
        return None
    if not uses_keras(words, environment, Nursery.current.environment) or "keras" in Nursery.current.modules:
        return Nursery.current
    if Nursery.with_keras is None:
        Nursery.with_keras = Nursery.current.branch(KERAS)
        atexit.register(Nursery.with_keras.connection.close)
    return Nursery.with_keras


def uses_keras(words: Sequence[str], environment: Mapping[str, str], environment_at_start: Mapping[str, str]) -> bool:
    """Whether a command imports Keras on TensorFlow, by its words, in an environment that changes nothing about these."""
    names = {name for name in {*environment, *environment_at_start} if name.startswith(("TF_", "XLA_"))} - {"TF_CPP_MIN_LOG_LEVEL"}
    alike = all(environment.get(name) == environment_at_start.get(name) for name in names)
    named = any("keras" in word for word in words) and not any("engine" in word or word == "pytest" for word in words)
    return named and alike and environment.get("KERAS_BACKEND", "tensorflow") == "tensorflow"


# --- the nursery itself ---------------------------------------------------------------------------------------------------------------


def first(descriptor: int) -> Callable[[], None]:
    """Import the libraries and serve; comes back in forked processes only, with what they have to do."""
    sys.path.remove(str(Path(__file__).parent))
    main = sys.modules["__main__"].__dict__
    del main["sys"], main["forked"]
    return import_and_serve(LIBRARIES, descriptor, sys.path[1:])


def import_and_serve(libraries: Sequence[str], descriptor: int, path: list[str]) -> Callable[[], None]:
    for name in libraries:
        importlib.import_module(name)
    if libraries is LIBRARIES:
        share_migrations()
    gc.collect()
    gc.freeze()  # so that the memory stays shared
    modules = sorted({name.partition(".")[0] for name in sys.modules} - {"__main__", "forked"})
    connection = socket.socket(fileno=descriptor)
    connection.sendall(json.dumps([modules, path]).encode() + b"\n")
    return serve(connection, modules, path)


def share_migrations() -> None:
    """Begin MLflow's fresh SQLite databases with what its migrations make of one: they take 0.8 s.

    With SPEECHTRAIN_TEST_MIGRATIONS=1 each is migrated.
    """
    import sqlalchemy
    from mlflow.store.db import utils

    migrate = utils._initialize_tables
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        engine = sqlalchemy.create_engine(f"sqlite:///{folder}/mlflow.db")
        migrate(engine)
        engine.dispose()
        with contextlib.closing(sqlite3.connect(f"{folder}/mlflow.db")) as database:
            script = "\n".join(database.iterdump()).replace("BEGIN TRANSACTION", "BEGIN IMMEDIATE", 1)
    logging.disable(logging.NOTSET)

    def initialize(engine: sqlalchemy.Engine) -> None:
        if engine.dialect.name != "sqlite" or os.environ.get("SPEECHTRAIN_TEST_MIGRATIONS") or sqlalchemy.inspect(engine).get_table_names():
            return migrate(engine)
        with contextlib.closing(engine.raw_connection()) as connection:
            try:
                connection.driver_connection.executescript(script)
            except sqlite3.OperationalError:  # another process was quicker
                connection.rollback()
                migrate(engine)

    utils._initialize_tables = initialize


def serve(connection: socket.socket, modules: list[str], path: list[str]) -> Callable[[], None]:
    """Fork a process for each request until nobody is there to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the others
    while True:
        content, files, _, _ = socket.recv_fds(connection, 1, 64)
        if not content:
            os._exit(0)
        while not content.endswith(b"\n"):
            content += connection.recv(1 << 16)
        between = os.fork()
        if between == 0:
            if os.fork():
                os._exit(0)  # so that the process becomes a child of the one that asks
            connection.close()
            job = json.loads(content)
            return become(job, files, modules, path) if "words" in job else become_branch(job, files, path)
        os.waitpid(between, 0)
        for file in files:
            os.close(file)


def wait_for_parent(job: Mapping[str, Any]) -> None:
    """Wait until this process is a child of the one that asked for it."""
    while os.getppid() != job["parent"]:
        time.sleep(0.0005)


def become_branch(job: Mapping[str, Any], files: list[int], path: list[str]) -> Callable[[], None]:
    """Make this forked process a nursery with more libraries."""
    wait_for_parent(job)
    reply, descriptor = files
    os.write(reply, b"%d" % os.getpid())
    os.close(reply)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TensorFlow's C++ part prints while it is loaded
    return import_and_serve(job["imports"], descriptor, path)


def become(job: dict[str, Any], files: list[int], modules: list[str], path: list[str]) -> Callable[[], None]:
    """Make this forked process what Python makes of itself when it starts; what is left to do is the call that comes back."""
    wait_for_parent(job)
    if job["session"]:
        os.setsid()
    elif job["group"] != -1:
        os.setpgid(0, job["group"])
    Nursery.current = Nursery.with_keras = Nursery.child = None
    if starts_others(job["words"]):
        ours, theirs = socket.socketpair()
        Nursery.child = os.fork()
        if Nursery.child == 0:
            ours.close()
            for file in files:
                os.close(file)
            return serve(theirs, modules, path)
        theirs.close()
        Nursery.current = Nursery(ours, job["environment"], modules, path)

    for number in (*job["ignored"], signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    if signal.SIGINT not in job["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.modules["numpy"].random.seed()  # a fresh process draws its own
    show_command_line(job["words"])
    words = list(job["words"][1:])
    if words[0] == "-u":
        words.pop(0)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    more = [os.path.abspath(each) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]  # noqa: PTH100
    call = program(words, job["folder"], list(dict.fromkeys([*more, *path])))

    subprocess.Popen = Popen  # type: ignore[misc]
    importlib.invalidate_caches()
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, 200) for file in files]
    for file in files:
        os.close(file)
    reply, *high = high
    for file, number in zip(high, (0, 1, 2, *job["passed"]), strict=True):
        os.dup2(file, number)
        os.close(file)
    os.write(reply, b"%d" % os.getpid())
    os.close(reply)
    return call


def starts_others(words: Sequence[str]) -> bool:
    """Whether a command may start Python processes that import the libraries: a run, a sweep, its job, a server, a program of the tests."""
    words = [word for word in words if word != "-u"]
    if words[-1] == "fork":  # the server of a sweep's workers
        return False
    if words[1] == "-c":
        return words[2] == WORKER or ("speechtrain" in words[2] and "mlflow.writer import main" not in words[2])
    launchers = ("torch.distributed.run", "submitit.local._local", "submitit.core._submit")
    modules = {"speechtrain", "speechtrain.sweep.workers.worker", *launchers, "mlflow", "pytest"}
    return words[1].endswith(".py") or not modules.isdisjoint(words[1:4])


def program(words: list[str], folder: str, path: list[str]) -> Callable[[], None]:
    """What Python does with its command line."""
    main = sys.modules["__main__"].__dict__
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path[:] = [folder, *path]
        return lambda: runpy._run_module_as_main(words[1])  # type: ignore[attr-defined] # as `python -m` itself does
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path[:] = ["", *path]
        return lambda: exec(words[1], main)
    sys.argv = words
    script = Path(words[0])
    sys.path[:] = [str(script.resolve().parent), *path]
    main["__file__"] = words[0]
    return lambda: exec(compile(script.read_bytes(), words[0], "exec"), main)


def show_command_line(words: list[str]) -> None:
    """Write these words where the system looks for the command line of this process."""
    sys.orig_argv[:] = words
    begin, end = (int(field) for field in Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    content = b"\0".join(os.fsencode(word) for word in words)[: end - begin - 1]
    ctypes.memmove(begin, content.ljust(end - begin, b"\0"), end - begin)


def finish(call: Callable[[], None]) -> None:
    """Make the call and end as Python does, but without taking thousands of modules down one by one."""
    code: object = 0
    try:
        call()
    except SystemExit as error:
        code = error.code
    except BaseException as error:  # noqa: BLE001 # whatever it is, it is shown
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
            frames = frames.tb_next
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined] # waits for threads, as Python does
    atexit._run_exitfuncs()
    if not isinstance(code, int) and code is not None:
        sys.stderr.write(f"{code}\n")
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if Nursery.current is not None and Nursery.child is not None:
        Nursery.current.connection.close()
        os.waitpid(Nursery.child, 0)
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 0xFF)
