"""What is imported before a mistake is answered: nothing that takes seconds. `benchmarks/start.py` has the times."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "torchaudio",
    "lightning",
    "lhotse",
    "mlflow",
    "keras",
    "tensorflow",
    "optuna",
    "pandas",
    "matplotlib",
    "scipy",
    "uvicorn",
    "transformers",
    "huggingface_hub",
)

ANSWERED = ["--help", "--explain model.chunk_frames", "--version", "--cfg job", "evaluate --help", "sync outputs"]

MISTAKES = [
    *(
        "model.chanels=3",
        "model=pretrained model.path=./zzz",
        "model.channels=-1",
        "-m model.chanels=1,2",
        "evalute",
        "--explain model.chunk_frame",
        "resume=zzz",
        "data=synthetic objective.metric=val/zzz",
        "init_from=zzz",
        "rerun=zzz",
        "data=manifest data.root=zzz",
    ),
    *("transcribe nothere.wav", "transcribe zzz=1", "transcribe from=zzz a.wav", "transcribe from=run decoder=zzz a.wav"),
    *("evaluate from=zzz", "evaluate from=run decoder.lexicon=zzz", "evaluate from=run decoder=beam decoder.lexicon=zzz"),
    *("evaluate from=run data=manifest data.root=zzz", "evaluate from=run decoder=[greedy,zzz]", "evaluate -m decoder=beam"),
    *("align audio=zzz.wav text=a", "align format=zzz", "align from=zzz", "export format=zzz from=run", "export from=zzz"),
    *("featurise data.rot=zzz", "inspect data.rot=zzz", "inspect from=zzz", "inspect files=zzz.wav", "inspect examples=zzz"),
    *("serve from=zzz", "serve port=-1", "lm text=zzz", "lm text=a.wav units=tokens from=zzz", "sync zzz"),
    *("compare", "compare zzz", "compare run zzz", "compare study=zzz", "compare zzz=1"),
]

PROGRAM = """
import contextlib, io, sys
from speechtrain.__main__ import main

heavy, *lines = sys.argv[1:]
for line in lines:
    sys.argv = ["speechtrain", *line.split()]
    code = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            code = end.code
    print(line, code, *sorted(set(heavy.split()) & set(sys.modules)), sep="\\t", flush=True)
"""


@pytest.mark.cold
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_help_and_a_mistake_in_any_command_import_no_framework(trained: Path, tmp_path: Path, every: int) -> None:
    (tmp_path / "run").symlink_to(trained)
    (tmp_path / "mlflow.db").symlink_to(trained.parent / "mlflow.db")
    (tmp_path / "a.wav").touch()
    (tmp_path / "outputs").mkdir()
    mistakes = MISTAKES[::every]
    command = [sys.executable, "-c", PROGRAM, " ".join(HEAVY), *ANSWERED, *mistakes]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    expected = [*(f"{line}\t0" for line in ANSWERED), *(f"{line}\t2" for line in mistakes)]
    assert done.stdout.splitlines() == expected, done.stderr


def test_closed_standard_streams_are_no_trace() -> None:
    command = f"{shlex.quote(sys.executable)} -m speechtrain.transcribe from=/nope/x.ckpt - <&- >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "there is no file /nope/x.ckpt" in done.stderr
    assert "Traceback" not in done.stderr
