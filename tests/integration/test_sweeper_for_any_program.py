"""The examples of docs/sweeper-for-any-program.md, as they stand there, and the sweeper's own distribution, which needs no torch."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY
from documented import blocks_of

PAGE = REPOSITORY / "docs" / "sweeper-for-any-program.md"
PACKAGE = REPOSITORY / "packages" / "speechtrain-sweeper"
NAMED = re.compile(r"^`(\w+\.(?:py|yaml))`.*?\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
UV = Path(sys.executable).parent / "uv"
OF_SPEECH = (
    "tune",
    "trial.attempts",
    "trial.job",
    "trial.close_runs",
    "workers.ssh",
    "reports.figures",
    "reports.page",
    "reports.recorder",
)
"""Modules of `speechtrain.sweep` that the distribution has without the rooms that they need."""


def example(name: str, folder: Path) -> list[str]:
    """Write the files of an example into a folder, and return the words of its command, behind Python."""
    files = dict(NAMED.findall(PAGE.read_text(encoding="utf-8")))
    for suffix in ("py", "yaml"):
        (folder / f"{name}.{suffix}").write_text(files[f"{name}.{suffix}"], encoding="utf-8")
    (line,) = [block.content for block in blocks_of(PAGE, PAGE.name) if block.content.startswith(f"python {name}.py")]
    return shlex.split(line)[1:]


def run(python: Path | str, words: list[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([str(python), *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "more"),
    [("sphere", []), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("classifier", []), ("regression", ["seed=1"])))],
)
def test_an_example_of_the_page_runs_as_it_stands_there_and_has_trials_pruned(name, more, tmp_path):
    shown = run(sys.executable, [*example(name, tmp_path), *more], tmp_path)

    done, pruned = re.search(r"^(\d+) done, (\d+) pruned$", shown, re.MULTILINE).groups()
    assert int(done) > 0
    assert int(pruned) > 0
    assert run(sys.executable, [f"{name}.py", *more], tmp_path).count("study") == 0, "alone it reports to nobody"


def test_the_sweepers_distribution_asks_for_what_the_whole_one_asks_for():
    whole = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert set(own["dependencies"]) <= set(whole["dependencies"])
    assert own["requires-python"] == whole["requires-python"]
    extras = whole["optional-dependencies"]
    assert {name: extras[name] for name in own["optional-dependencies"]} == own["optional-dependencies"]


@pytest.mark.slow
@pytest.mark.cold
def test_the_sweeper_alone_runs_a_program_that_reports_and_brings_no_torch(tmp_path):
    builds = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(PACKAGE)]
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(builds, check=True, capture_output=True)
    subprocess.run([str(UV), "venv", "--quiet", "--python", sys.executable, str(tmp_path / "env")], check=True)
    constraints = ["--constraints", str(REPOSITORY / "requirements.lock")]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    install = [str(UV), "pip", "install", "--quiet", "--python", str(python), *constraints, *map(str, tmp_path.glob("*.whl"))]
    subprocess.run(install, check=True, env=environment)

    listed = run(UV, ["pip", "list", "--python", str(python)], tmp_path).split()
    shown = run(python, example("sphere", tmp_path), tmp_path)
    (package,) = (tmp_path / "env").glob("lib/*/site-packages/speechtrain")
    files = (path.relative_to(package.parent).with_suffix("") for path in sorted(package.glob("sweep/**/[!_]*.py")))
    modules = [name for name in (".".join(file.parts) for file in files) if not name.endswith(OF_SPEECH)]
    run(python, ["-c", "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]", *modules], tmp_path)

    assert "speechtrain-sweeper" in listed
    assert not {"torch", "lightning", "mlflow", "keras", "lhotse", "scikit-learn", "plotly"} & set(listed)
    assert re.search(r"^\d+ done, \d+ pruned$", shown, re.MULTILINE), shown
    shutil.rmtree(tmp_path / "env")
