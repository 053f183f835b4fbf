"""Each command of README.md and of the how-to pages works as it is typed: bash runs it, on small data, with words added that make it short.

`make test-all` composes the configs of the trainings and checks them, and runs the other commands of FRONT; `make test-slow` trains.
A line of a fenced block that the shell below cannot run makes its test fail, so a new one is tested from the start. What cannot run here is
in `ELSEWHERE`, with the reason; it is planned: composed and checked.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpora
import h5py
import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY, made_once
from documented import Block, Call, Shell, blocks_of
from featurised import write_corpus
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

import speechtrain
from speechtrain.app.arguments import arguments_of
from speechtrain.app.commands import COMMANDS
from speechtrain.config import CONF_DIR
from speechtrain.config.build import build
from speechtrain.config.schemas.commands import ExportConfig
from speechtrain.config.schemas.sweeps import SweeperOptions
from speechtrain.sweep.plan import Planner
from speechtrain.sweep.plugin import _read_options
from speechtrain.sweep.space.compose import Composer

FRONT = ("README.md", "docs/get-started.md", "docs/training.md", "docs/data.md")
"""The pages that a newcomer reads, whose commands every run of CI tries."""
HOW_TO = ("your-own-language", "use", "sweeps", "tasks", "tracking", "keras", "models", "troubleshooting")
PAGES = [*FRONT, *(f"docs/{name}.md" for name in HOW_TO), "CONTRIBUTING.md"]
BLOCKS = [block for page in PAGES for block in blocks_of(REPOSITORY / page, page)]
SHELL = ("", "sh", "console")
SHORT = ("trainer.fast_dev_run=true", "backend.threads=1", "trainer.accelerator=cpu", "report.enabled=false")
QUIET = ("tracking.mlflow.log_model=false", "tracking.mlflow.system_metrics=null")
SIZES = ("data.train_size=12", "data.val_size=4", "data.test_size=4")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("theo", "nicolas", "lucas", "george", "yweweler", "jackson")

ELSEWHERE = {
    "hydra/launcher=ssh": "needs another machine; tests/integration/sweep/test_ssh.py has one",
    "hydra/launcher=submitit_slurm": "needs a Slurm cluster",
    "data.root=https://HOST/shards": "needs a server; tests/unit/data/corpora/test_shar.py has one",
    "data.root=s3://BUCKET/shards": "the same",
    "trainer.devices=2": "tests/integration/test_devices.py trains in two processes",
}
"""What a line holds that is not run here, and why; it is planned. So are all sweeps but the first of README.md, to save time."""
REPEATED_ELSEWHERE = {
    "resume=": "tests/integration/test_train_command.py",
    "rerun=": "tests/integration/test_notebook.py",
    "experiment=rerun_best": "tests/integration/sweep/test_training_sweeps.py",
}
"""Beginnings of words that need a run of before, and which test of `make test-all` has them; `make test-slow` runs them here."""
EXPORTED_ELSEWHERE = {"onnx", "pt2", "torchscript", "tflite", "tflite_int8", "tflite_micro", "keras"}
"""Formats that are not written here: test_export_command.py, test_keras_export.py and test_microcontroller_export.py do, in a minute."""
OWN_PROCESS = (
    "-m",
    "resume=",
    "rerun=",
    "--config-dir",
    "experiment=rerun_best",
    "data.folds",
    "tracking=",
    "backend.engine",
)
"""Beginnings of the words of trainings that start as a process; the others are run in the test's, which has imported everything."""
OTHER_COMMAND = re.compile(rf"speechtrain[. ]({'|'.join(COMMANDS)})\b")


# What the commands find: recordings, corpora, and runs that were made before.


def write_manifest(path: Path, texts: list[str], speakers: tuple[str, ...] = SPEAKERS) -> list[dict[str, Any]]:
    """A manifest of tones that spell these texts, in a folder for the first word of each."""
    entries = []
    for index, text in enumerate(texts):
        name = f"{text.split()[0]}/{path.stem}-{index}.wav"
        audio = corpora.write(path.parent / name, text)
        entry = {"utt_id": f"{path.stem}-{index}", "audio_filepath": name, "duration": soundfile.info(audio).duration, "text": text}
        entries.append({**entry, "speaker": speakers[index % len(speakers)]})
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return entries


def write_corpora(data: Path) -> None:
    """The corpora that the pages say lie under /data."""
    digits = [f"{WORDS[index % 10]} {WORDS[(index + 3) % 10]}" for index in range(16)]
    mine = data / "mine"
    every = [
        *write_manifest(mine / "train.jsonl", digits),
        *write_manifest(mine / "valid.jsonl", digits[:4], ("rosa",)),
        *write_manifest(mine / "test.jsonl", digits[4:8], ("emil",)),
    ]
    (mine / "all.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in every))
    rng = np.random.default_rng(0)
    with h5py.File(mine / "train.h5", "w") as file:
        for name, shape in {"mixed_signals": (20, 500), "target_signals": (20, 500), "condition_vectors": (20, 4)}.items():
            file[name] = rng.standard_normal(shape).astype(np.float32)
    write_manifest(data / "fsdd" / "train_full.jsonl", list(WORDS) * 2)
    write_manifest(data / "fsdd" / "test.jsonl", list(WORDS), ("emil",))
    corpora.librispeech(data / "ls", ("train-clean-100", "dev-clean", "test-clean"))
    corpora.common_voice(data / "cv-corpus")
    corpora.an4(data / "an4")
    corpora.kaldi(data / "kaldi" / "data")
    corpora.kaldi(data / "kaldi" / "data", "dev", ("dan", "eve"))
    for speaker in SPEAKERS:
        for text in digits[:4]:
            audio = corpora.write(data / "spoken" / speaker / f"{text.replace(' ', '-')}.wav", text)
            audio.with_suffix(".txt").write_text(text)
    for word in ("yes", "no", "stop"):
        for speaker in "abcdef":
            corpora.write(data / "sc" / word / f"{speaker}0_nohash_0.wav", word)
    corpora.write(data / "sc" / "_background_noise_" / "hum.wav", "m" * 60)
    (data / "sc" / "validation_list.txt").write_text("".join(f"{word}/e0_nohash_0.wav\n" for word in ("yes", "no", "stop")))
    (data / "sc" / "testing_list.txt").write_text("".join(f"{word}/f0_nohash_0.wav\n" for word in ("yes", "no", "stop")))
    write_corpus(data / "featurised", train=12)


def train_before(folder: Path, *words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "speechtrain", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def write_place(folder: Path) -> None:
    """What lies in the folder in which the commands are typed."""
    write_corpora(folder / "data")
    for name in ("a.wav", "b.flac", "a.flac", "talks/c.wav"):
        corpora.write(folder / name, "seven two")
    corpora.tone(folder / "audio/a.flac", 1.25)
    (folder / "corpus.txt").write_text("seven two one\nfour five six\n" * 5 + "\n".join(WORDS) + "\n")
    shutil.copy(folder / "data/mine/train.jsonl", folder)
    (folder / "words.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "my_pkg.py").write_text(
        "import torch\nfrom speechtrain.backends.torch.encoder import Encoder\n\n\n"
        "class MyEncoder(Encoder):\n    subsampling, receptive_field, causal = 1, 1, True\n\n"
        "    def __init__(self, input_size: int, width: int = 32):\n        super().__init__()\n"
        "        self.layer = torch.nn.Linear(input_size, width)\n        self.output_size = width\n\n"
        "    def forward(self, features, lengths):\n        return self.layer(features), lengths\n\n"
        "    def output_lengths(self, lengths):\n        return lengths\n"
    )
    (my_task,) = (block.content for block in BLOCKS if block.content.startswith("# my_task.py"))
    (folder / "my_task.py").write_text(my_task)
    versioned = ("Makefile", "pyproject.toml", "requirements.lock", ".pre-commit-config.yaml")
    for name in versioned:
        shutil.copy(REPOSITORY / name, folder)
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=folder, check=True)
    with (folder / ".git" / "config").open("a") as config:
        config.write('[user]\nname = somebody\nemail = somebody@example.org\n[remote "origin"]\nurl = ./repository\n')
    for words in (["add", *versioned], ["commit", "-q", "-m", "A start"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    shutil.copytree(folder / ".git", folder / "repository" / ".git")
    data = ("data=manifest", f"data.root={folder / 'data/mine'}", "data.val=valid.jsonl", "data.test=test.jsonl", "model.dropout=0")
    live = ("model=lstm", "features.normalize=none", "features.top_db=null", "hydra.run.dir=live")
    train_before(folder, *data, *live, *SHORT, *QUIET)
    train_before(folder, *data, "model=tdnn", "model.channels=32", "tracking.mlflow.registered_model=asr", *SHORT)
    sweep = ("optimizer.lr=1e-3,1e-2", "model=mlp", "hydra.sweeper.study_name=study")
    train_before(folder, "-m", *sweep, *SIZES, *SHORT, *QUIET)


@pytest.fixture
def place(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current folder, with all of that in it."""
    made = made_once(tmp_path_factory, "documented", write_place)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run_ids(place: Path) -> list[str]:
    files = [place / "live/run.json", *place.glob("outputs/*/*/run.json")]
    return [json.loads(path.read_text())["mlflow_run_id"] for path in files]


def filled_in(text: str, place: Path, port: int = 0) -> str:
    """The text with what stands for something of the reader's replaced by what the test has made."""
    live, last = run_ids(place)
    text = re.sub(r"(data\.(\w+)_dir)=\.\.\.", r"\1=/data/featurised/\2", text)
    meant = {
        "<this repository>": f"{place}/repository speechtrain",
        "/data/": f"{place}/data/",
        "/tmp/": f"{place}/",
        "3f2a91": last[:9],
        "b07c44": live[:9],
        "RUN_ID": live,
        "STUDY": "study",
        "tdnn-digits": "tdnn-manifest",
        "host=here": f"host={platform.node()}",
        "8080": str(port),
    }
    written = "|".join(re.escape(word) + (r"\b" if word[-1].isalnum() else "") for word in meant)
    return re.sub(rf"(?<!\w)(?:{written})", lambda found: meant[found[0]], text)


# What each program does when the shell starts it.


class Programs:
    """The programs that a page may name; each gives its exit code.

    Attributes:
        as_typed: whether nothing is added, for a page shows what is answered.
        in_full: whether trainings are run, and not only composed.
        sweeps: whether the next sweep is run, and not only planned.
        plans: words of the sweeps that are to be planned in this process, when the shell has ended.
        trainings: words of the trainings that are to be run in this process, when the shell has ended.
    """

    def __init__(self, place: Path, *, as_typed: bool, in_full: bool, sweeps: bool) -> None:
        self.place = place
        self.as_typed = as_typed
        self.in_full = in_full
        self.sweeps = sweeps
        self.plans: list[list[str]] = []
        self.trainings: list[list[str]] = []
        self.servers: list[subprocess.Popen[bytes]] = []

    def treatments(self) -> dict[str, Callable[[Call], int]]:
        names = ("speechtrain", "python", "make", "git", "pip", "curl", "arecord", "createdb")
        return {**{name: getattr(self, name) for name in names}, "pre-commit": self.pre_commit}

    def python(self, call: Call) -> int:
        if call.words[0] == "benchmarks/losses.py":  # two and a half minutes
            flags = [word for word in call.words if word.startswith("--")]
            told = subprocess.run([sys.executable, str(REPOSITORY / call.words[0]), "--help"], capture_output=True, text=True, check=True)
            return int(any(flag not in told.stdout for flag in flags))
        assert call.words[0] == "-m", call
        if call.words[1] == "build":  # the wheel is built and installed in a test of its own
            return call.run(sys.executable, "-m", "build", "--help")
        package, _, command = call.words[1].partition(".")
        assert package == "speechtrain", call
        return self.command(call, command or "train", call.words[2:])

    def speechtrain(self, call: Call) -> int:
        named = call.words[:1] if call.words[:1] and call.words[0] in COMMANDS else ["train"]
        return self.command(call, named[0], call.words[named != ["train"] :])

    def command(self, call: Call, name: str, words: list[str]) -> int:
        if name == "train":
            return self.train(call, words)
        if name == "sweep" and words[0] == "cancel":  # needs a trial that runs; tests/unit/sweep/test_control.py has one
            return 0
        formats = next((set(re.findall(r"\w+", word)[1:]) for word in words if name == "export" and word.startswith("format=")), set())
        if formats & EXPORTED_ELSEWHERE:
            arguments_of(ExportConfig, words)
            return 0
        added = {
            "evaluate": ["n_trials=2"] if "-m" in words else ["report=false"],
            "compare": ["bootstrap=20"],
            "export": ["utterances=2"],
        }.get(name, [])
        command = (sys.executable, "-m", f"speechtrain.{name}", *words, *added)
        if name != "serve":
            return call.run(*command)
        process = call.beside(*command)
        self.servers.append(process)
        port = next(word.partition("=")[2] for word in words if word.startswith("port="))
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                    return 0
            if process.poll() is not None:
                return process.returncode
            time.sleep(0.1)
        return 1

    def train(self, call: Call, words: list[str]) -> int:
        if self.as_typed or words[0] in ("--help", "--explain", "--cfg"):
            return call.run(sys.executable, "-m", "speechtrain", *words)
        if any(word in ELSEWHERE for word in words) or (words[0] == "-m" and not self.sweeps):
            self.plans.append([word for word in words if word != "-m"])
        elif {"model=wav2vec2", "model=pretrained"} & {*words}:  # hundreds of megabytes; the tests of both train small ones
            self.plans.append(words)
        elif not self.in_full and any(word.startswith(tuple(REPEATED_ELSEWHERE)) for word in words):
            return 0
        elif not self.in_full and words[0] != "--config-dir":
            self.plans.append([word for word in words if word != "-m"])
        elif not any(word.startswith(OWN_PROCESS) for word in words):
            self.trainings.append(words)
        else:
            self.sweeps = self.sweeps and words[0] != "-m"
            return call.run(sys.executable, "-m", "speechtrain", *words, *self.shortened(words))
        return 0

    def shortened(self, words: list[str]) -> list[str]:
        if any(word.startswith(("resume=", "rerun=")) for word in words):
            return []
        sizes = [] if any(word.startswith("data=") for word in words) else SIZES
        trials = ["hydra.sweeper.n_trials=2"] if "-m" in words or "experiment=rerun_best" in words else []
        quiet = QUIET if any(word.startswith("tracking") for word in words) else ["tracking=[]"]
        folds = ["data.folds=2"] if any(word.startswith("data.folds=") for word in words) else []
        layers = ["model.n_layers=1"] if "model=conformer" in words else []
        return [*SHORT, *sizes, *trials, *folds, *layers, *quiet]

    def make(self, call: Call) -> int:
        if call.words == ["install"] and not (call.folder / ".venv").exists():
            (call.folder / ".venv").symlink_to(self.place / ".venv")
        return call.run("make", "-n", *call.words)  # CI begins with the targets themselves

    def git(self, call: Call) -> int:
        return call.run("git", *call.words)

    def pip(self, call: Call) -> int:
        extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.fullmatch(r"install speechtrain\[([\w,]+)\]", " ".join(call.words))
        return 0 if named and set(named[1].split(",")) <= set(extras) else 1

    def curl(self, call: Call) -> int:
        if call.words[0] != "-LO":
            return call.run("curl", "--fail", "--silent", *call.words)
        (call.folder / call.words[1].rpartition("/")[2]).touch()
        return 0

    def arecord(self, call: Call) -> int:
        rate = int(call.words[call.words.index("-r") + 1])
        samples = np.round(2**15 * corpora.tones("seven two", rate)).astype("<i2")
        assert call.words[:2] == ["-f", "S16_LE"]
        call.write(samples.tobytes())
        return 0

    def createdb(self, call: Call) -> int:
        return int(len(call.words) != 1)  # needs a PostgreSQL server; tests/integration/sweep/test_storages.py starts one

    def pre_commit(self, call: Call) -> int:
        return call.run(sys.executable, "-m", "pre_commit", *call.words)

    def stop(self) -> list[int]:
        """End the servers, and return their exit codes."""
        for server in self.servers:
            server.send_signal(signal.SIGINT)
        return [server.wait(30) for server in self.servers]


def plan(words: list[str]) -> None:
    """Compose the config of a command line that starts a sweep, or a job somewhere else, and check all of its space."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        cfg = loader.load_configuration("config", [*words, "hydra.job.name=speechtrain"], RunMode.MULTIRUN)
        options = _read_options(cfg.hydra.sweeper, SweeperOptions)
        if options.params or any(is_sweep_of_key(word) for word in words):
            assert Planner(options, Composer(loader, cfg), cfg).plan([word for word in words if not word.startswith("hydra")]).n_trials > 1
            return
    speechtrain.compose([word for word in words if not word.startswith("hydra")])


def is_sweep_of_key(word: str) -> bool:
    key, _, value = word.partition("=")
    return not key.startswith("hydra") and bool(re.match(r"(choice|interval|range|tag)\(|\w+,", value))


def train_here(words: list[str], folder: Path) -> None:
    """Train a batch with the config of a command line."""
    added = ["tracking=[]", *SHORT]
    cfg = speechtrain.compose([*words, *added], output_dir=folder)
    added += [*(SIZES if "train_size" in cfg.data else ()), *(["model.n_layers=1"] if isinstance(cfg.model.get("n_layers"), int) else ())]
    speechtrain.train(speechtrain.compose([*words, *added], output_dir=folder))


def typed(block: Block) -> str:
    """The lines that are typed: all, or those behind a prompt."""
    if not re.search(r"^\$ ", block.content, re.MULTILINE):
        return block.content
    return "\n".join(line[2:] for line in block.content.splitlines() if line.startswith("$ "))


def is_quick(block: Block) -> bool:
    """Whether the lines of a block only train a batch in the test's own process, or start no Python at all."""
    lines = [line for line in typed(block).splitlines() if "speechtrain" in line]
    return not any(OTHER_COMMAND.search(line) or any(word.startswith(OWN_PROCESS) for word in line.split()) for line in lines)


def parameters(*languages: str) -> list[Any]:
    found = [block for block in BLOCKS if block.language in languages]
    return [pytest.param(block, id=str(block), marks=pytest.mark.long if block.page in FRONT else pytest.mark.slow) for block in found]


def commands() -> list[Any]:
    """The blocks of commands, all of them in full, and those that `make test-all` can afford without their trainings."""
    found = [block for block in BLOCKS if block.language in SHELL]
    composed = [block for block in found if block.page in FRONT or is_quick(block)]
    return [
        *(pytest.param(block, False, id=f"{block}-composed", marks=pytest.mark.long) for block in composed),
        *(pytest.param(block, True, id=str(block), marks=pytest.mark.slow) for block in found),
    ]


@pytest.mark.parametrize(("block", "in_full"), commands())
def test_commands_work_as_typed(block: Block, in_full: bool, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answered = typed(block) != block.content
    programs = Programs(place, as_typed=answered, in_full=in_full, sweeps=in_full and block.page in FRONT)
    shell = Shell(place, programs.treatments())
    try:
        done = shell.run(filled_in(typed(block), place, port))
        if answered:
            shown = "".join(line for line in block.content.splitlines(keepends=True) if not line.startswith("$ "))
            assert done.stderr == shown
            return
        assert done.returncode == 0, f"{shell.calls[-1]}\n{done.stdout[-2000:]}\n{done.stderr}"
    finally:
        stopped = programs.stop()
    assert set(stopped) <= {0, 130, -signal.SIGINT}  # the last: interrupted before Python has begun
    for words in programs.plans:
        for weights in (word.partition("=")[2] for word in words if word.startswith("model.weights=")):
            (place / weights).touch()
        plan(words)
    for number, words in enumerate(programs.trainings):
        train_here(words, place / f"out-{number}")


def samples_of_a_recording() -> dict[str, Any]:
    return {"samples": corpora.tones("seven two")}


def chunked_conformer() -> dict[str, Any]:
    import torch

    words = ["data=synthetic", "model=conformer", "model.chunk_frames=16", "model.left_chunks=4", "tracking=[]"]
    cfg = speechtrain.compose([*words, *SIZES, *SHORT])
    result = speechtrain.train(cfg)
    result.model.eval()
    return {"result": result, "features": torch.randn(1, 200, cfg.features.n_mels)}


def keras_checkpoint() -> dict[str, Any]:
    cfg = speechtrain.compose(["data=synthetic", "model=mlp", "backend=keras", "tracking=[]", *SIZES, *SHORT])
    result = speechtrain.train(cfg)
    assert result.checkpoint is not None
    Path("checkpoints").mkdir()
    shutil.copy(result.checkpoint, "checkpoints/best-epoch=005.keras")
    return {"features": np.zeros((2, 50, cfg.features.n_mels), np.float32), "feature_lengths": np.array([50, 40], np.int32)}


GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": dict,
    "docs/training.md": dict,
    "docs/use.md": samples_of_a_recording,
    "docs/sweeps.md": dict,
    "docs/tasks.md": dict,
    "docs/tracking.md": samples_of_a_recording,
    "docs/keras.md": keras_checkpoint,
    "docs/models.md": chunked_conformer,
}
"""What the Python of each page takes for granted."""


@pytest.mark.parametrize("block", parameters("python"))
def test_python_runs_as_it_stands(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile(filled_in(block.content, place), str(block), "exec")
    given = GIVEN[block.page]()
    in_full = speechtrain.compose
    monkeypatch.setattr(speechtrain, "compose", lambda words: in_full([*words, "tracking=[]", *SIZES, *SHORT]))

    exec(code, given)


@pytest.mark.parametrize("block", parameters("yaml"))
def test_a_file_of_a_sweep_runs_as_it_stands(block: Block, place: Path) -> None:
    (place / "own" / "sweep").mkdir(parents=True)
    (place / "own" / "sweep" / "mine.yaml").write_text(block.content)

    train_before(place, "-m", "--config-dir", "own", "sweep=mine", "tracking=[]", "hydra.sweeper.n_trials=2", *SIZES, *SHORT)


@pytest.mark.parametrize("block", parameters("json"))
def test_a_line_of_a_manifest_is_read_as_it_stands(block: Block, place: Path) -> None:
    (place / "line.jsonl").write_text(block.content)

    cfg = speechtrain.compose(["data=manifest", f"data.root={place}", "data.train=line.jsonl", "data.on_bad=error"], output_dir=place)
    (cut,) = build("data", cfg.data).load(None).splits["train"]
    assert cut.text == json.loads(block.content)["text"]


def test_every_block_is_tested_or_is_what_a_command_prints() -> None:
    assert {block.language for block in BLOCKS} <= {*SHELL, "python", "yaml", "json", "text"}


def test_an_activated_environment_has_the_programs_that_the_pages_name() -> None:
    named = {"python", "speechtrain", "pre-commit", "pip", "mlflow", "pytest"}

    assert named <= {path.name for path in (Path(sys.prefix) / "bin").iterdir()}
