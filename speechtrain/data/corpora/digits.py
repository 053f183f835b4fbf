"""`data=digits`: strings of spoken digits, synthesized with eSpeak NG and kept in a cache.

An utterance is a function of (seed, split, index) and of the keys that say how to speak; its file's name holds a hash of them, so a
cache can be shared by runs of any size. No voice is in two splits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import soundfile

from speechtrain.config.extras import require
from speechtrain.console import progress_bar
from speechtrain.data.corpus import SPLITS, Corpus, make_cut
from speechtrain.errors import DataError, RunError, unwritable
from speechtrain.files import user_path

log = logging.getLogger(__name__)

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
VOICES = {
    "train": (
        "Alex Alicia Andrea Andy Denis Diogo Gene Henrique Jacky Lee Marco Michael Nguyen Reed RicishayMax Storm Tweaky adam anika "
        "announcer antonio belinda boris caleb david ed edward f1 f2 f4 f5 grandma grandpa iven iven2 iven4 john kaukovalta klatt klatt3 "
        "klatt4 linda m1 m2 m4 m5 m6 m8 max miguel norbert pablo pedro quincy robert steph steph3 travis victor zac"
    ).split(),
    "val": "Annie Mario RicishayMax3 benjamin gustave klatt5 m7 shelby".split(),
    "test": "Gene2 Hugo Mike aunty edward2 f3 ian iven3 klatt2 m3 marcelo michel paul rob sandro steph2".split(),
}
"""Variants of eSpeak's voices by split; whispers, robots and other novelties are left out."""

_VERSION = 1  # of `job`; another one makes new files


class Digits:
    """A corpus of synthesized strings of spoken digits.

    Args:
        cache_dir: where the audio is kept.
        seed: seed of the corpus.
        train_size, val_size, test_size: utterances.
        min_words, max_words: digits an utterance.
        sample_rate: Hz.
        processes: number of processes that synthesize; None: one per core.
    """

    def __init__(
        self,
        cache_dir: str,
        seed: int,
        train_size: int,
        val_size: int,
        test_size: int,
        min_words: int,
        max_words: int,
        sample_rate: int,
        processes: int | None,
    ) -> None:
        self.cache_dir = user_path(cache_dir).absolute()
        self.seed = seed
        self.sizes = dict(zip(SPLITS, (train_size, val_size, test_size), strict=True))
        self.words = (min_words, max_words)
        self.sample_rate = sample_rate
        self.processes = processes or os.cpu_count() or 1

    def load(self, limit: int | None) -> Corpus:
        """Synthesize what the cache lacks, and list all utterances.

        Raises:
            DataError: the extra `synth` is not installed, or the cache cannot be written.
        """
        jobs = {name: [self.job(name, index) for index in range(min(size, limit or size))] for name, size in self.sizes.items()}
        self._make([job for name in SPLITS for job in jobs[name]])
        splits = {}
        for name in SPLITS:
            cuts = []
            for index, job in enumerate(jobs[name]):
                samples = soundfile.info(job["path"]).frames
                cuts.append(
                    make_cut(
                        f"{name}-{index:05d}",
                        Path(job["path"]),
                        num_samples=samples,
                        sample_rate=self.sample_rate,
                        text=job["text"],
                        speaker=job["voice"].partition("+")[2],
                    )
                )
            splits[name] = cuts
        return Corpus({**splits})

    def job(self, split: str, index: int) -> dict[str, Any]:
        """Draw what is said in an utterance, by whom and how, and name its file."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        digits = rng.integers(10, size=rng.integers(self.words[0], self.words[1] + 1))
        job = {
            "text": " ".join(WORDS[digit] for digit in digits),
            "voice": f"{rng.choice(ACCENTS)}+{rng.choice(VOICES[split])}",
            "rate": int(rng.integers(120, 230)),
            "pitch": int(rng.integers(15, 86)),
            "pitch_range": int(rng.integers(20, 81)),
            "sample_rate": self.sample_rate,
        }
        name = hashlib.sha256(json.dumps([_VERSION, job], sort_keys=True).encode()).hexdigest()[:24]
        return {**job, "path": str(self.cache_dir / "digits" / name[:2] / f"{name}.flac")}

    def _make(self, jobs: list[dict[str, Any]]) -> None:
        missing = {job["path"]: job for job in jobs if not Path(job["path"]).is_file()}
        if not missing:
            return
        require("data=digits", ("espeakng_loader",), otherwise="use data=synthetic")
        try:
            for path in missing:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.cache_dir / "digits" / ".lock"):
                still_missing = [job for path, job in missing.items() if not Path(path).is_file()]
                if still_missing:
                    for unfinished in self.cache_dir.glob("digits/*/.*.tmp.flac"):  # of a run that was killed, for this one holds the lock
                        unfinished.unlink(missing_ok=True)
                    self._synthesize(still_missing)
        except OSError as error:
            raise unwritable(self.cache_dir, error, "data.cache_dir, or the variable SPEECHTRAIN_CACHE,", DataError) from None

    def _synthesize(self, jobs: list[dict[str, Any]]) -> None:
        """Share the jobs among worker processes, and wait for all of them."""
        count = min(self.processes, len(jobs))
        log.info("eSpeak NG speaks %d utterances, once; they are kept in %s", len(jobs), self.cache_dir / "digits")
        with (
            progress_bar(f"synthesizing {len(jobs)} utterances in {count} processes", len(jobs)) as advance,
            tempfile.TemporaryDirectory() as folder,
        ):
            workers = []
            for number in range(count):
                requests = Path(folder) / str(number)
                requests.write_text("".join(json.dumps(job) + "\n" for job in jobs[number::count]), encoding="utf-8")
                with requests.open() as stdin, (Path(folder) / f"{number}.err").open("w") as stderr:
                    command = [sys.executable, "-m", "speechtrain.data.corpora.espeak"]
                    workers.append(subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, text=True))
            try:
                readers = [threading.Thread(target=_count_lines, args=(worker, advance)) for worker in workers]
                for reader in readers:
                    reader.start()
                for number, worker in enumerate(workers):
                    readers[number].join()
                    if worker.wait() != 0:
                        lines = (Path(folder) / f"{number}.err").read_text().strip().splitlines()
                        raise RunError(f"eSpeak NG failed: {lines[-1] if lines else f'exit code {worker.returncode} and no output'}")
            finally:
                for worker in workers:
                    worker.kill()


def _count_lines(worker: subprocess.Popen[str], advance: Callable[[int], None]) -> None:
    """Advance by one for each line that a worker prints, which is a finished file."""
    for _ in worker.stdout or ():
        advance(1)
