"""Command lines with one mistake or several: exit code 2, a message in our own words, and nothing left in the folder."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import re
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from absl.logging import PythonHandler
from fuzzing import files_below, generators

from speechtrain import __main__ as program
from speechtrain.app import commands, job
from speechtrain.config import CONF_DIR
from speechtrain.config.schema import SCHEMAS
from speechtrain.config.schemas.commands import COMMANDS
from speechtrain.sweep.sweeper import TrialLoop

GROUPS = ("data", "features", "tokenizer", "augment", "task", "model", "optimizer", "scheduler", "backend", "trainer", "decoder")
SOUND = (
    *("seed=3", "model=conformer", "model=tdnn", "data=synthetic", "optimizer=sgd", "trainer.epochs=2", "tracking=[]", "samples=0"),
    *(
        "backend=keras",
        "augment=none",
        "report.enabled=false",
        "optimizer.lr=0.01",
        "features=logmel_8k",
        "decoder=beam",
        "scheduler=constant",
    ),
)
NUMBERS = (
    *("seed", "samples", "trainer.epochs", "optimizer.lr", "optimizer.weight_decay", "model.channels", "model.dropout", "data.num_buckets"),
    *("data.batch_seconds", "report.worst", "trainer.gradient_clip_val", "backend.threads", "report.bootstrap"),
)


def word(rng: random.Random, length: int = 6) -> str:
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(length)) + "q"


def noise(rng: random.Random) -> str:
    letters = "abc019_.-/\\ =,:;'\"[]{}()$@!~+*%#&|<>?^`\t\u00e9\u0142\u4e2d\U0001f600\u2028\u200b\x01\x7f"
    return "".join(rng.choice(letters) for _ in range(rng.randint(1, 12)))


NOT_NUMBERS = ("many", "nan", "-inf", "[1]", "{a:1}", "-7", "1e400", "true", "1j", "0x", "1..2")
INTERPOLATIONS = ("${nope}", "${seed}", "${oc.env:NOPE_NOPE}", "${nope:1}", "${", "${model", "$}{", "${.}", "${hydra:nope}")
TARGETS = ("os", "os.nope", "nope.Nope", ".", "a b", "3", "null", "speechtrain.nope.X", "..", "speechtrain.models.Conformer")
NO_RUNS = ("/nope/run", "/dev/null", "/", "1e5", "x" * 300, "~nobody/run", "best-epoch=001.ckpt", "a\nb", "models:/x")
NO_MODELS = (*NO_RUNS, "/nope/x.ckpt", "models:/nope/1", "runs:/nope/model", "models:/", "x.zip", "x.keras", "")
NO_TRACKERS = ("nope://x", "sqlite:", "http://", "://", "postgresql://", "sqlite:////nope/x.db", "databricks", "file:///nope")
NO_RANGES = ("choice()", "interval(3,1)", "range(0,10,0)", "interval(a,b)", "glob(*)x", "int(a)", "shuffle()", "tag(a)")
NO_SWEEPS = (
    *("n_jobs=0", "n_trials=-1", "n_trials=x", "direction=up", "direction=3", "max_failure_rate=2", "storage=nope://x", "sampler=3"),
    *("sampler.seed=x", "sampler=nope", "pruner=[1]", "pruner=nope", "params=3", "params={nope:1}", "when=3", "when=[1]", "enqueue=[1]"),
    *("study_name=..", "study_name=", "study_name=/x", "check=3", "check=os.nope", "constraints=[x]", "timeout=-1", "repeat_best_of=nope"),
)


MISTAKES: tuple[Callable[[random.Random], list[str]], ...] = (
    lambda rng: [f"{word(rng)}={rng.choice(['1', 'x', 'null', '[1,2]', '{a:1}', ''])}"],
    lambda rng: [f"{rng.choice(GROUPS)}.{word(rng)}={rng.randint(0, 9)}"],
    lambda rng: [f"{rng.choice(GROUPS)}={word(rng)}"],
    lambda rng: [f"{rng.choice(['experiment', 'sweep'])}={word(rng)}"],
    lambda rng: [f"tracking=[{word(rng)},mlflow]"],
    lambda rng: [f"{rng.choice(NUMBERS)}={rng.choice(NOT_NUMBERS)}"],
    lambda rng: [f"{rng.choice(NUMBERS)}={'9' * rng.randint(25, 400)}"],
    lambda rng: [f"{rng.choice([*GROUPS, 'report', 'objective', 'export'])}={rng.choice(['3', 'null', '[]', '{}', 'true', ''])}x,"],
    lambda rng: [f"seed={rng.choice(INTERPOLATIONS)}"],
    lambda rng: [f"seed={rng.choice(['[', '(', '{', chr(39), chr(34)]) * rng.randint(1, 60)}{word(rng)}"],
    lambda rng: [word(rng)],
    lambda rng: [f"={word(rng)}"],
    lambda rng: [f"--{word(rng)}"],
    lambda rng: ["--config-dir", word(rng)],
    lambda rng: [f"--config-name={word(rng)}"],
    lambda rng: [f"--config-path={word(rng)}"],
    lambda rng: [f"hydra.{word(rng)}=1"],
    lambda rng: [f"hydra/launcher={word(rng)}"],
    lambda rng: [f"hydra/sweeper={word(rng)}"],
    lambda rng: [f"~{rng.choice([word(rng), 'model.' + word(rng), 'model', 'output_dir'])}"],
    lambda rng: [f"+{rng.choice([*GROUPS, 'report', 'objective', 'export', 'trainer.early_stopping'])}.{word(rng)}=1"],
    lambda rng: [f"+{word(rng)}{rng.choice(['', '.' + word(rng)])}=1"],
    lambda rng: [f"{rng.choice(GROUPS)}@{word(rng)}={word(rng)}"],
    lambda rng: [f"{rng.choice(GROUPS)}._target_={rng.choice(TARGETS)}"],
    lambda rng: [f"{rng.choice(['resume', 'rerun'])}={rng.choice([word(rng), *NO_RUNS])}"],
    lambda rng: [f"init_from={rng.choice(['/nope/', 'nope/', '~nobody/'])}{word(rng)}"],
    lambda rng: [f"seed=1{noise(rng)}x"],
    lambda rng: [f"model.{noise(rng)}=1"],
    lambda rng: [noise(rng), word(rng)],
    lambda rng: ["data=manifest", f"data.root={rng.choice(['/nope', '/dev/null', word(rng), '/proc/self'])}", "data.train=x.jsonl"],
    lambda rng: ["-m", f"model.channels={rng.choice(NO_RANGES)}"],
    lambda rng: ["-m", "model.channels=8,16", f"hydra.sweeper.{rng.choice(NO_SWEEPS)}"],
    lambda rng: ["-m", f"{word(rng)}=1,2"],
    lambda rng: ["-m", f"model={word(rng)},tdnn"],
    lambda rng: ["-m", f"optimizer.lr={rng.choice(['0.1,x', 'nan,1', '-1,2', '[1,2],[3]'])}"],
)
"""Each is a mistake wherever it stands."""

OF_COMMANDS: tuple[Callable[[random.Random], list[str]], ...] = (
    lambda rng: [f"{word(rng)}=1"],
    lambda rng: [f"from={rng.choice([word(rng), *NO_MODELS])}"],
    lambda rng: [
        f"tracking_uri={rng.choice(NO_TRACKERS)}",
        "from=4598e534",
    ],
    lambda rng: [f"out={noise(rng)}", "from=" + word(rng)],
    lambda rng: [f"trust={word(rng)}"],
    lambda rng: [f"{rng.choice(['data', 'decoder', 'backend'])}={word(rng)}", "from=" + word(rng)],
    lambda rng: [f"{word(rng)}.{word(rng)}={noise(rng)}"],
    lambda rng: [f"from={noise(rng)}{word(rng)}"],
    lambda rng: [f"~{word(rng)}", f"+{word(rng)}=2"],
    lambda rng: [f"--{word(rng)}=3"],
)


def of_training(number: int, rng: random.Random) -> list[str]:
    """A command line with a mistake, sometimes two, between arguments that are none."""
    mistake = MISTAKES[2 * number % len(MISTAKES) + rng.randrange(2)](rng)
    more = MISTAKES[rng.randrange(len(MISTAKES))](rng) if rng.random() < 0.2 else []
    changed = {item.lstrip("+~").partition("=")[0] for item in mistake + more}
    sound = [item for item in rng.sample(SOUND, rng.randint(0, 3)) if item.partition("=")[0] not in changed]
    return sound + mistake + more if rng.random() < 0.5 else mistake + more + sound


def of_command(number: int, rng: random.Random) -> list[str]:
    names = sorted(COMMANDS)
    return [names[number % len(names)], *OF_COMMANDS[rng.randrange(len(OF_COMMANDS))](rng)]


def accepted(cfg: object, *_: object, **__: object) -> None:
    raise AssertionError("it is trained")


def outcome(arguments: list[str], start: Callable[[], None]) -> tuple[int, str]:
    """The exit code of a command in this process, and what it printed."""
    printed = io.StringIO()
    code: object = 0
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            start()
    except SystemExit as ended:
        code = ended.code
    assert isinstance(code, int) or code is None, f"the exit code is {code!r} with {arguments}"
    return code or 0, printed.getvalue()


def judge(arguments: list[str], code: int, text: str, folder: Path) -> None:
    assert code == 2, f"exit code {code} with {arguments}\n{text[-3000:]}"
    assert text.strip(), f"no message with {arguments}"
    for word_of_traces in ("Traceback", "site-packages", 'File "'):
        assert word_of_traces not in text, f"{arguments}\n{text[-3000:]}"
    assert not re.search(r"<\w+ object at 0x|\b(AssertionError|KeyError|AttributeError|TypeError)\b", text), f"{arguments}\n{text}"
    assert not files_below(folder), f"left behind by {arguments}: {files_below(folder)}"


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What a command changes in its process comes back."""
    monkeypatch.setattr(program.interrupts, "command", contextlib.nullcontext)
    monkeypatch.setattr(PythonHandler, "close", lambda handler: None)  # Hydra ends all handlers, and absl's closes pytest's own stream
    monkeypatch.setattr(program, "_TRACES_WANTED", False)
    monkeypatch.setattr(job, "train", accepted)
    monkeypatch.setattr(TrialLoop, "run", accepted)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.syspath_prepend(".")
    handlers = logging.getLogger().handlers[:]
    yield monkeypatch
    logging.getLogger().handlers[:] = handlers  # Hydra's write into folders that are gone


def test_wrong_command_lines_of_a_training_are_refused(tmp_path: Path, state: pytest.MonkeyPatch) -> None:
    for number, rng in generators("training", len(MISTAKES) // 4):
        arguments = of_training(number, rng)
        state.setattr(sys, "argv", ["speechtrain", *arguments])
        code, text = outcome(arguments, program.main)
        judge(arguments, code, text, tmp_path)


def test_wrong_command_lines_of_the_other_commands_are_refused(tmp_path: Path, state: pytest.MonkeyPatch) -> None:
    for number, rng in generators("commands", len(OF_COMMANDS)):
        arguments = of_command(number, rng)
        state.setattr(sys, "argv", ["speechtrain", *arguments])
        code, text = outcome(arguments, program.main)
        judge(arguments, code, text, tmp_path)


def test_every_group_is_tried() -> None:
    assert set(GROUPS) <= {*SCHEMAS}
    assert all((CONF_DIR / group).is_dir() for group in GROUPS)
    assert {*COMMANDS} <= {*commands.COMMANDS}
