"""The numbers of short trainings, decodings, transcripts and a sweep to the last digit, and which of them are not what they were.

    python benchmarks/losses.py before.json                            # two and a half minutes of one core
    python benchmarks/losses.py after.json --against before.json       # after a change that should change nothing; 1 if something differs

Everything is asked of the command line, in an empty folder, so that it does not matter where the package keeps what. One thread, and
data made on the spot, so that two runs of the same code on the same machine agree. Times and paths are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import soundfile
from optuna.storages.journal import JournalFileBackend, JournalStorage

PLAIN = ("tracking=[]", "report.enabled=false", "backend.threads=1")
LETTERS = " abcd"
TONES = (
    *("data=synthetic", "features=logmel_8k", f"data.alphabet='{LETTERS}'", "data.min_chars=6", "data.max_chars=12", "data.batch_size=8"),
    *("data.train_size=150", "data.val_size=12", "data.test_size=24"),
)
TRAININGS = {
    "ctc": (
        *TONES,
        *("model=conformer", "model.d_model=32", "model.n_layers=2", "model.subsampling=2", "augment=light", "trainer.epochs=8"),
    ),
    "classification": (
        *("experiment=keywords", "data.train_size=120", "data.val_size=20", "data.test_size=30", "data.batch_size=16"),
        *("model=crdnn", "augment=specaugment", "scheduler=step", "optimizer=adam", "trainer.epochs=2"),
    ),
    "regression": (
        *("experiment=signal_extraction", "data.train_size=48", "data.val_size=8", "data.test_size=8", "data.duration=2"),
        *("model.hidden_size=16", "model.dropout=0.1", "trainer.epochs=3"),
    ),
}
SWEEP = (
    *(*TONES, "data.train_size=40", "model=mlp", "trainer.epochs=4", "optimizer.lr=tag(log,interval(1e-6,1e-1))", "model.stack=range(1,4)"),
    *("hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1", "hydra.sweeper.study_name=study"),
    *(
        "hydra/sweeper/pruner=median",
        "hydra.sweeper.pruner.n_startup_trials=2",
        "hydra.sweeper.pruner.n_warmup_steps=1",
        "objective.metric=val/loss",
    ),
)
RATES = (8000, 16000, 44100)
LEFT_OUT = re.compile(r"time/|_per_s$|/latency|^started$|^uid$|run_id|^model$|^overrides$|^file$")
"""Times, paths and names that are new in every run."""
NOT_THE_BEST = re.compile(r" > (hypotheses|alternatives) > [1-9]")
"""What follows on the best answer: flashlight-text chooses between equals by where they lie in memory, which no two processes share."""


class Commands:
    """The program's commands in a folder.

    Args:
        folder: where they run, and keep what is shared between runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, module: str, *words: str) -> str:
        """What a command prints."""
        print(f"{module} {' '.join(words)}"[:140], file=sys.stderr)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "SPEECHTRAIN_CACHE": str(self.folder / "cache")}
        done = subprocess.run([sys.executable, "-m", module, *words], cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{done.stdout}{done.stderr}\n{module} ended with {done.returncode}")
        return done.stdout

    def training(self, backend: str, task: str) -> dict[str, Any]:
        """Its epochs and what it found at its end."""
        where = f"{backend}_{task}"
        self.run("speechtrain", f"backend={backend}", *TRAININGS[task], *PLAIN, f"hydra.run.dir={where}")
        return {"epochs": self.lines(f"{where}/history.jsonl"), "run": self.read(f"{where}/run.json")}

    def decodings(self, source: str) -> dict[str, Any]:
        """Texts, scores and metrics of each way of decoding, and the language model that one of them has."""
        words = (source, "report=false", "backend.threads=1")
        self.run("speechtrain.evaluate", *words, "out=greedy")
        references = [line.split("\t")[0] for line in (self.folder / "greedy/predictions.tsv").read_text().splitlines()]
        (self.folder / "text.txt").write_text("".join(f"{line}\n" for line in references))
        self.run("speechtrain.lm", "text=text.txt", "order=2", "out=lm.arpa", "lexicon=words.txt")
        beam = ("decoder=beam", "decoder.lexicon=words.txt", "nbest=3")
        self.run("speechtrain.evaluate", *words, *beam, "out=lexicon")
        self.run("speechtrain.evaluate", *words, *beam, "decoder.lm=lm.arpa", "decoder.lm_weight=0.7", "decoder.word_score=0.3", "out=lm")
        found: dict[str, Any] = {name: {"evaluation": self.read(f"{name}/evaluation.json")} for name in ("greedy", "lexicon", "lm")}
        for name, content in found.items():
            content["texts"] = sorted((self.folder / name / "predictions.tsv").read_text().splitlines())
            if name != "greedy":
                content["nbest"] = self.lines(f"{name}/nbest.jsonl")
        return {**found, "arpa": (self.folder / "lm.arpa").read_text().splitlines()}

    def transcripts(self, source: str) -> dict[str, Any]:
        """What is heard in the same tones at each rate, and in a recording that is longer than the window."""
        for rate in RATES:
            soundfile.write(self.folder / f"{rate}.wav", tones("dad cab a bad", rate), rate)
        soundfile.write(self.folder / "long.flac", np.tile(tones("abba dada ", 16000), 6), 16000)
        files = [*(f"{rate}.wav" for rate in RATES), "long.flac"]
        self.run("speechtrain.transcribe", source, *files, "decoder=beam", "nbest=3", "window=4", "format=json", "out=heard")
        return {name: self.read(f"heard/{Path(name).stem}.json") for name in files}

    def sweep(self) -> list[dict[str, Any]]:
        """Every trial of the study."""
        self.run("speechtrain", "-m", *SWEEP, *PLAIN)
        journal = JournalStorage(JournalFileBackend(str(self.folder / "multirun/study/study.journal")))
        return [
            {"state": trial.state.name, "params": trial.params, "values": trial.values, "reported": trial.intermediate_values}
            for trial in optuna.load_study(study_name="study", storage=journal).trials
        ]

    def read(self, name: str) -> Any:
        """A JSON file."""
        return json.loads((self.folder / name).read_text())

    def lines(self, name: str) -> list[Any]:
        """A file of JSON lines."""
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


def tones(text: str, rate: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A text as `data=synthetic` says it at 8 kHz, without noise."""
    frequencies = np.geomspace(300, 0.45 * 8000, num=len(LETTERS))
    time = np.arange(rate // 10) / rate
    pause = np.zeros(rate // 20)
    said = [np.hanning(len(time)) * np.sin(2 * np.pi * frequencies[LETTERS.index(letter)] * time) for letter in text]
    return np.concatenate([pause, *(part for tone in said for part in (0.3 * tone, pause))]).astype(np.float32)


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text under its path, without those that are left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not LEFT_OUT.search(str(key)):
                yield from flat(item, f"{path} > {key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from flat(item, f"{path} > {index}")
    elif not NOT_THE_BEST.search(path):
        yield path, value


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for each value that is not what it was, to the last digit."""
    paths = dict.fromkeys([*before, *after])
    shown = {path: (repr(before.get(path, "nothing")), repr(after.get(path, "nothing"))) for path in paths}
    return [f"{path}: was {was}, is {now}" for path, (was, now) in shown.items() if was != now]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="file for the numbers")
    parser.add_argument("--against", type=Path, help="file of an earlier run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = Commands(Path(folder))
        found: dict[str, Any] = {
            f"{backend} {task}": commands.training(backend, task) for backend in ("torch", "keras") for task in TRAININGS
        }
        found["decoding"] = commands.decodings("from=torch_ctc")
        found["transcribing"] = commands.transcripts("from=torch_ctc")
        found["sweep"] = commands.sweep()
    values = dict(flat(found))
    options.out.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    numbers = sum(isinstance(value, float) and math.isfinite(value) for value in values.values())
    print(f"{len(values)} values, {numbers} of them with a fraction, in {options.out}")
    if options.against is None:
        return 0
    other = differences(json.loads(options.against.read_text()), json.loads(options.out.read_text()))
    print("\n".join(other) or f"all are those of {options.against}")
    return int(bool(other))


if __name__ == "__main__":
    sys.exit(main())
