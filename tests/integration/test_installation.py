"""The wheel without the lock, in fresh environments: newest and lowest versions, builds for processors only, and nothing but serving."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, made_once

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from install import without_cuda

pytestmark = [pytest.mark.long, pytest.mark.cold]

UV = Path(sys.executable).parent / "uv"
SWEPT = [*TINY, "model=tdnn", "model.channels=48", "trainer.epochs=1", "tracking=[mlflow]"]


@dataclass(frozen=True)
class Environment:
    """A virtual environment into which packages can be installed."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def install(self, *arguments: str | Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        command = [str(UV), "pip", "install", "--quiet", "--python", str(self.python), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def run(self, *arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run Python with arguments in a folder, without anything of the checkout."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        command = [str(self.python), *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


Make = Callable[..., Environment]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Make]:
    """Make an empty environment with a Python."""

    def make(python: str | Path = sys.executable) -> Environment:
        subprocess.run([str(UV), "venv", "--quiet", "--python", str(python), str(tmp_path / "env")], check=True)
        return Environment(tmp_path / "env")

    yield make
    shutil.rmtree(tmp_path / "env", ignore_errors=True)  # gigabytes


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def build(folder: Path) -> None:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    (made,) = made_once(tmp_path_factory, "wheel", build).glob("*.whl")
    return made


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """The archive of the trained run."""

    def export(folder: Path) -> None:
        command = [sys.executable, "-m", "speechtrain.export", f"from={trained}", f"out={folder}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "archive", export) / "tdnn-run.zip"


def newest_python() -> str:
    """The newest Python on this machine that PyTorch has wheels for."""
    for minor in (14, 13, 12):
        found = subprocess.run(
            [str(UV), "python", "find", "--no-python-downloads", f"3.{minor}"], capture_output=True, text=True, check=False
        )
        if found.returncode == 0:
            return found.stdout.strip()
    return sys.executable


def check_that_it_trains_sweeps_transcribes_and_exports(env: Environment, folder: Path, recording: str) -> None:
    folder.mkdir()
    swept = env.run("-m", "speechtrain", "-m", *SWEPT, "optimizer.lr=1e-3,2e-3", "hydra.sweep.dir=sweep", folder=folder)
    assert swept.returncode == 0, swept.stderr
    assert "2 done" in swept.stdout
    run = folder / "sweep" / "0"
    heard = env.run("-m", "speechtrain", "transcribe", f"from={run}", recording, "format=json", folder=folder)
    assert heard.returncode == 0, heard.stderr
    assert "text" in json.loads(heard.stdout.splitlines()[0])
    exported = env.run("-m", "speechtrain", "export", f"from={run}", "utterances=1", "out=exports", folder=folder)
    assert exported.returncode == 0, exported.stderr
    assert [zipfile.is_zipfile(path) for path in (folder / "exports").glob("*-0*.zip")] == [True]
    where = env.run("-c", "import speechtrain, speechtrain.config as c; print(speechtrain.__file__, c.CONF_DIR)", folder=folder)
    assert all(Path(place).is_relative_to(env.folder) for place in where.stdout.split())


@pytest.mark.slow
def test_the_newest_versions_of_everything_train_sweep_transcribe_and_export(
    environment: Make, wheel: Path, spoken: dict[str, str], tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    env = environment(newest_python())
    env.install(wheel)
    check_that_it_trains_sweeps_transcribes_and_exports(env, tmp_path / "work", next(iter(spoken)))
    for arguments in ([*SWEPT, "--cfg", "job"], ["--version"]):
        shown = env.run("-m", "speechtrain", *arguments, folder=tmp_path / "work")
        assert shown.stdout == command(*arguments, cwd=tmp_path / "work").stdout
        assert shown.stdout
    assert next(env.folder.glob("lib/*/site-packages/speechtrain/py.typed")).is_file()
    refused = env.run("-m", "speechtrain", "backend=keras", "decoder=beam", folder=tmp_path / "work")
    assert refused.returncode == 2
    assert {"'speechtrain[keras]'", "'speechtrain[beam]'"} <= set(re.findall(r"'speechtrain\[\w+\]'", refused.stderr))


@pytest.mark.slow
def test_the_lowest_versions_that_are_allowed_train_sweep_transcribe_and_export(
    environment: Make, wheel: Path, spoken: dict[str, str], tmp_path: Path
) -> None:
    env = environment()
    env.install("--resolution", "lowest-direct", "-r", REPOSITORY / "pyproject.toml")
    env.install("--no-deps", wheel)
    check_that_it_trains_sweeps_transcribes_and_exports(env, tmp_path / "work", next(iter(spoken)))


@pytest.mark.slow
def test_the_light_group_on_a_build_without_cuda_transcribes_and_serves_and_says_what_training_needs(
    environment: Make, wheel: Path, archive: Path, spoken: dict[str, str], tmp_path: Path
) -> None:
    env = environment()
    build = without_cuda()
    if not build:
        pytest.skip("no folder of PIP_FIND_LINKS has a build of PyTorch without CUDA")
    env.install(*build, "--group", f"{REPOSITORY / 'pyproject.toml'}:light")
    env.install("--no-deps", wheel)
    path, text = next(iter(spoken.items()))
    heard = env.run("-m", "speechtrain", "transcribe", f"from={archive}", path, folder=tmp_path)
    assert heard.returncode == 0, heard.stderr
    assert heard.stdout.strip() == text
    for arguments in (["data=synthetic"], ["evaluate", f"from={archive}"], ["export", f"from={archive}"]):
        refused = env.run("-m", "speechtrain", *arguments, folder=tmp_path)
        assert refused.returncode == 2, refused.stderr
        assert "pip install speechtrain" in refused.stderr
        assert "Traceback" not in refused.stderr
    aligned = env.run("-m", "speechtrain", "align", f"from={archive}", f"audio={path}", f"text={text}", folder=tmp_path)
    assert aligned.returncode == 0, aligned.stderr
    served = subprocess.Popen(
        [str(env.python), "-m", "speechtrain", "serve", f"from={archive}", "port=0"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        assert served.stdout is not None
        line = next((line for line in served.stdout if line.startswith("serving")), None)
        assert line is not None, f"the server ended with code {served.wait()}"
        address = line.split()[1]
        with urllib.request.urlopen(f"{address}/transcribe", data=Path(path).read_bytes(), timeout=60) as answer:
            assert json.load(answer)["text"] == text
    finally:
        served.terminate()
        served.wait(60)
