"""Real files, real configs, real processes."""

from __future__ import annotations

import contextlib
import functools
import gc
import http.server
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import soundfile
from filelock import FileLock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of everything that is started; numbers are compared bit for bit
for size in ("COLUMNS", "LINES"):
    os.environ.pop(size, None)  # pytest-xdist says 80, and tables would be folded only where tests run beside each other
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(name, None)
if not os.environ.get("SPEECHTRAIN_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # numbers are compared bit for bit, which a GPU's are not

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # tests in the background of a shell: what they start would not hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

TINY = [
    "data=synthetic",
    "features=logmel_8k",
    "data.train_size=40",
    "data.val_size=8",
    "data.test_size=8",
    "tracking=[]",
    "report.enabled=false",
    "backend.threads=1",
]
"""A corpus and settings that train in a second."""

TRAINED = [*TINY, "model=tdnn", "model.channels=48", "augment=none", "data.train_size=80", "data.batch_size=8", "trainer.epochs=14"]
"""The config of the run that `trained` is."""


def thinned(cases: Iterable[Any], every: int) -> list[Any]:
    """Leave each `every`th case of a long parametrisation, from the first on, in every run; the others are slow."""
    params = [each if hasattr(each, "marks") else pytest.param(*(each if isinstance(each, tuple) else (each,))) for each in cases]
    return [
        each if number % every == 0 else pytest.param(*each.values, marks=(*each.marks, pytest.mark.slow), id=each.id)
        for number, each in enumerate(params)
    ]


def pytest_configure() -> None:
    """Let the processes that run tests fork what they start, and the one that hands out tests fork these."""
    forked.install()


def pytest_collection_finish() -> None:
    """Leave what the libraries made while they were imported out of garbage collections: composing configs is a quarter faster."""
    gc.collect()
    gc.freeze()


def prepared(overrides: Sequence[str], threads: int = 1) -> Any:
    """The data of a config, with its task's targets."""
    from speechtrain import compose
    from speechtrain.config.experiment import ExperimentConfig
    from speechtrain.data.prepare import prepare
    from speechtrain.tasks.build import task_for

    cfg = ExperimentConfig.of(compose(overrides))
    corpus = prepare(cfg, threads=threads)
    return corpus.for_task(task_for(cfg, corpus))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", f"{tmp_path}-state")  # where addresses with passwords are kept
    yield
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()


@pytest.fixture(autouse=True)
def _started_cold(request: pytest.FixtureRequest) -> Iterator[None]:
    with forked.cold() if request.node.get_closest_marker("cold") else contextlib.nullcontext():
        yield


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Any]:
    """The toy program in an empty folder; whatever it left running is killed at the end."""
    import psutil
    from toys import Toy

    yield Toy(tmp_path)
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] == str(tmp_path) and process.pid != os.getpid():
            process.kill()


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    """Give the address of a database of a PostgreSQL server."""
    import databases

    with databases.postgresql(tmp_path, "speech") as port:
        yield f"postgresql+psycopg://speech@127.0.0.1:{port}/postgres"


@pytest.fixture
def grpc_proxy(tmp_path: Path) -> Iterator[str]:
    """Give the address of Optuna's proxy before a database."""
    import databases

    with databases.grpc_proxy(tmp_path) as url:
        yield url


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m speechtrain ...` in an empty folder."""

    def run(*arguments: str, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(
            [sys.executable, "-m", "speechtrain", *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
        )

    return run


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of pytest's workers to need it makes for all of them; tests only read it."""
    base = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    folder = base / name
    with FileLock(f"{folder}.lock"):
        if not (folder / ".made").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / ".made").touch()
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that knows the letters of the synthetic corpus; `mlflow.db` is beside it."""

    def train(folder: Path) -> None:
        arguments = [sys.executable, "-m", "speechtrain", *TRAINED, "tracking=[mlflow]", f"hydra.run.dir={folder / 'run'}"]
        done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "trained", train) / "run"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the folder of a pretrained checkpoint of a kind (`checkpoints.KINDS`), which is written once."""

    def make(kind: str, *, head: bool = True) -> Path:
        import checkpoints

        name = f"checkpoint_{kind}{'' if head else '_without_head'}"
        return made_once(tmp_path_factory, name, lambda folder: checkpoints.make(kind, folder, head=head) and None)

    return make


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Recordings of the test split of that run, by path, and their texts."""
    folder = tmp_path_factory.mktemp("spoken")
    data = prepared(TRAINED)
    texts = {}
    for cut in data.corpus.splits["test"]:
        path = folder / f"{cut.id}.wav"
        soundfile.write(path, data.corpus.read(cut, 8000), 8000)
        texts[str(path)] = cut.text
    return texts


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Path]:
    """Write a manifest of tone bursts; keyword arguments replace keys of the entry at an index, None removes one."""

    def write(texts: list[str], name: str = "train.jsonl", rate: int = 8000, **changes: dict[str, Any]) -> Path:
        folder = tmp_path / "corpus"
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        lines = []
        for index, text in enumerate(texts):
            stem = f"{Path(name).stem}-{index}"
            samples = 0.1 * np.sin(2 * np.pi * (300 + 50 * index) * np.arange(rate) / rate)
            soundfile.write(folder / "audio" / f"{stem}.wav", samples.astype(np.float32), rate)
            entry: dict[str, Any] = {
                "utt_id": stem,
                "audio_filepath": f"audio/{stem}.wav",
                "duration": 1.0,
                "text": text,
                "speaker": f"s{index % 4}",
            }
            for key, value in changes.get(f"at_{index}", {}).items():
                if value is None:
                    entry.pop(key)
                else:
                    entry[key] = value
            lines.append(json.dumps(entry))
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    return write


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., tuple[str, bytes]]]:
    """Packs a folder and serves it: gives the address above the archive, and what is in it."""
    place = tmp_path / "server"
    place.mkdir()
    handler = functools.partial(_Quiet, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def serve(folder: Path, name: str, inside: str | None = None) -> tuple[str, bytes]:
            with tarfile.open(place / name, "w:gz") as tar:
                tar.add(folder, arcname=inside or folder.name)
            return f"http://127.0.0.1:{server.server_port}", (place / name).read_bytes()

        yield serve
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass
