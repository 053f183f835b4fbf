"""`backend=keras` as a user types it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import thinned
from featurised import PHONEMES, write_corpus
from test_train_command import SMALL, history, runs, started

Command = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [pytest.mark.long, pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs the keras extra")]

READ = """
import json, sys, numpy as np, keras
import speechtrain.backends.keras.speech_model, speechtrain.backends.keras.models
model = keras.models.load_model(sys.argv[1])
vocabulary = open(sys.argv[2]).read().split()
found = {}
for path in sys.argv[3:]:
    values = np.load(path).T[:-7]
    values = (values - values.mean()) / values.std()
    log_probs, lengths = model(values[None], np.array([len(values)], "int32"))
    best = np.asarray(log_probs)[0].argmax(-1)
    best = [label for label, before in zip(best, [-1, *best[:-1]]) if label != before and label != len(vocabulary)]
    found[path] = [vocabulary[label] for label in best]
print("FOUND" + json.dumps(found))
"""


@pytest.mark.slow
def test_featurised_manifests_train_to_a_keras_file_with_the_blank_last(command: Command, tmp_path: Path) -> None:
    overrides = write_corpus(tmp_path / "corpus", train=120)
    missing = tmp_path / "corpus/spectrogram/train-00007_v0.npy"
    missing.unlink()
    done = command(*overrides, "backend=keras", "backend.threads=1", "model=tdnn", "model.channels=48", "trainer.epochs=15")
    assert done.returncode == 0, done.stderr
    assert re.search(f"train-00007_v0: no such file: {missing}", done.stdout + done.stderr)
    (run,) = runs(tmp_path)
    assert run.data.metrics["values/data skipped"] == 1
    assert run.data.metrics["test/wer"] < 0.1
    model = re.search(r"model +(\S+model\.keras)", done.stdout)
    assert model is not None
    arrays = sorted((tmp_path / "corpus/spectrogram").glob("test-*.npy"))
    read = subprocess.run(
        [sys.executable, "-c", READ, model[1], str(tmp_path / "corpus/vocab/phoneme_list.txt"), *map(str, arrays)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "FOUND" in read.stdout, read.stderr
    found = json.loads(read.stdout.partition("FOUND")[2])
    right = 0
    for path, phonemes in found.items():
        truth = json.loads((tmp_path / f"corpus/token/{Path(path).stem.removesuffix('_v0')}.json").read_text())["phonemes"]
        right += phonemes == truth
        assert set(phonemes) <= set(PHONEMES)
    assert right >= 7
    names = [line for line in done.stdout.splitlines() if "Warning" in line]
    assert not names


@pytest.mark.parametrize(("wish", "code"), thinned([("error", 2), ("warn", 0)], 2))
def test_nothing_to_train_on_is_said_before_anything_is_built(command: Command, tmp_path: Path, wish: str, code: int) -> None:
    overrides = write_corpus(tmp_path / "corpus", train=3)
    for path in (tmp_path / "corpus/spectrogram").glob("train*"):
        path.unlink()
    done = command(*overrides, "backend=keras", f"data.on_empty={wish}")
    assert done.returncode == code
    assert "no utterance is left to train on (3 were bad)" in done.stdout + done.stderr
    assert "parameters" not in done.stdout
    assert "Traceback" not in done.stderr


MOMENTS = ("while a checkpoint is written", r"epoch   5/8", r"utterances", r"epoch   3/8", "while a checkpoint is written")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "moments"), [("torch", MOMENTS[:2]), *(pytest.param(name, MOMENTS, marks=pytest.mark.slow) for name in ("torch", "keras"))]
)
def test_a_run_killed_at_any_moment_ends_like_one_that_was_not(
    command: Command, tmp_path: Path, backend: str, moments: tuple[str, ...]
) -> None:
    arguments = [*SMALL, f"backend={backend}", "trainer.epochs=8", "model=tdnn", "model.channels=32", "scheduler=plateau"]
    arguments += ["scheduler.patience=0", "trainer.early_stopping.patience=7", "data.batch_size=8", "trainer.checkpoint.every_n_steps=2"]
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert command(*arguments, cwd=tmp_path / "whole").returncode == 0
    folder = tmp_path / "parts"
    given = arguments
    for moment in moments:
        kill_when(given, folder, moment)
        given = ["resume=last"]
    done = command("resume=last", cwd=folder)
    assert done.returncode == 0, done.stderr
    (whole,), (parts,) = runs(tmp_path / "whole"), runs(folder)
    assert parts.info.status == "FINISHED"
    assert history(folder, parts) == history(tmp_path / "whole", whole)
    (checkpoints,) = folder.glob("outputs/*/*/checkpoints")
    assert len(list(checkpoints.glob("best-*"))) == 1


def kill_when(arguments: list[str], folder: Path, moment: str) -> None:
    """Start the command and kill it, so that it can do nothing more, when its output says something or a checkpoint is half written."""
    process = started(arguments, folder)
    assert process.stdout is not None
    try:
        if moment.startswith("while"):
            while process.poll() is None and not list(folder.glob("outputs/*/*/checkpoints/.*tmp*")):
                time.sleep(0.001)  # a core is left to the process
        else:
            assert any(re.search(moment, line) for line in process.stdout), moment
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_an_extra_that_is_missing_is_named_before_anything_is_imported(command: Command, tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "found = PathFinder.find_spec\n"
        "PathFinder.find_spec = staticmethod(lambda name, *rest: None if name in ('keras', 'jax') else found(name, *rest))\n"
    )
    for overrides, said in ((["backend=keras"], "keras, which is"), (["backend=keras", "backend.engine=jax"], "keras, jax, which are")):
        done = command(*overrides, PYTHONPATH=str(tmp_path / "hidden"))
        assert done.returncode == 2
        assert f"backend.engine: needs {said} not installed" in done.stderr
        assert "pip install 'speechtrain[keras" in done.stderr


@pytest.mark.slow  # .ci/run begins with a training where no Keras is installed
def test_the_torch_backend_needs_no_keras(command: Command, tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/sitecustomize.py").write_text("import sys\nfor name in ('keras', 'tensorflow', 'jax'): sys.modules[name] = None\n")
    done = command(*SMALL, "trainer.epochs=1", PYTHONPATH=str(tmp_path / "hidden"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("overrides", "said"),
    thinned(
        [
            (["trainer.devices=2"], "trainer.devices: is 2; the Keras backend trains on one device"),
            (["trainer.strategy=ddp"], "trainer.strategy: is ddp; that is Lightning's"),
            (["trainer.accelerator=gpu"], "trainer.accelerator: is gpu, but the engine sees none"),
            (["model._target_=speechtrain.backends.torch.models.Mlp"], "model._target_: must make an encoder"),
        ],
        4,
    ),
)
def test_what_keras_cannot_do_is_a_users_mistake(command: Command, overrides: list[str], said: str) -> None:
    done = command(*SMALL, "backend=keras", *overrides)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
