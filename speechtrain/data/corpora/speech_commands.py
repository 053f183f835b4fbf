"""`data=speech_commands`: Speech Commands (Warden 2018), one word a file, split by its own lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from speechtrain.data.corpora.download import Archive, fetch
from speechtrain.data.corpus import SPLITS, Corpus, Cut, Skip, audio_files, make_cut, read_header
from speechtrain.data.splits import limit_cuts
from speechtrain.data.text.lines import read_text
from speechtrain.errors import DataError
from speechtrain.files import is_file, is_folder, user_path

SILENCE = "_silence_"
_NOISE = "_background_noise_"
_LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}
RELEASED = Archive(  # version 2; TensorFlow Datasets publishes the digest
    "https://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    2.3,
)
_SPEAKER = re.compile(r"^(?P<speaker>.+?)_nohash_")


class SpeechCommands:
    """Speech Commands (Warden 2018), version 1 or 2; no speaker is in two splits.

    Args:
        root: folder with a folder for each word, `validation_list.txt`, `testing_list.txt` and, for silence, `_background_noise_`; or
            the folder that it is downloaded to, above `SpeechCommands/speech_commands_v0.02`.
        download: fetch version 2 (2.3 GB) if it is not there.
        mirror: address to fetch from instead of its own, without the archive's name.
        words: the words to be read; None: all.
        silence: number of one-second pieces of background noise with the text `_silence_`, as a share of the utterances of each split;
            no part of a noise is in two splits.
        seed: seed of the positions in the noise.
    """

    def __init__(self, root: str, download: bool, mirror: str | None, words: Sequence[str] | None, silence: float, seed: int) -> None:
        self.root = user_path(root).absolute()
        self.download = download
        self.mirror = mirror
        self.words = list(words) if words is not None else None
        self.silence = silence
        self.seed = seed

    def load(self, limit: int | None) -> Corpus:
        """Read the lists and the header of every file.

        Raises:
            DataError: the data is not there, a list is missing, or a word has no folder.
        """
        root = self._find_or_fetch()
        split_of = {name: split for split, file in _LISTS.items() for name in read_text(root / file).split()}
        folders = sorted(path for path in root.iterdir() if is_folder(path) and not path.name.startswith(("_", ".")))
        names = [path.name for path in folders]
        if missing := [word for word in self.words or () if word not in names]:
            raise DataError(f"data.words: {root} has no folder for {', '.join(missing)}; there is: {', '.join(names)}")
        skipped: list[Skip] = []
        cuts: dict[str, list[Cut]] = {name: [] for name in SPLITS}
        for folder in folders:
            if self.words is not None and folder.name not in self.words:
                continue
            for path in audio_files(folder):
                split = split_of.get(f"{folder.name}/{path.name}", "train")
                try:
                    cuts[split].append(_cut(path))
                except DataError as error:
                    skipped.append(Skip(split, str(path), str(error)))
        for split in SPLITS:
            words = limit_cuts(cuts[split], limit)
            cuts[split] = [*words, *self._silences(root, split, round(self.silence * len(words)))]
        if not cuts["train"]:
            raise DataError(f"{root}: no utterance is left to train on")
        return Corpus({**cuts}, skipped)

    def _find_or_fetch(self) -> Path:
        inside = self.root / "SpeechCommands" / "speech_commands_v0.02"
        cut_off = (inside / RELEASED.name).exists()  # while it was unpacked
        for place in (self.root, *([] if cut_off else [inside])):
            if all(is_file(place / name) for name in _LISTS.values()):
                return place
        if self.download:
            fetch(RELEASED if self.mirror is None else RELEASED.at(self.mirror), inside)
            return inside
        raise DataError(
            f"{self.root}: is not Speech Commands ({' and '.join(_LISTS.values())} are missing)\n"
            "    -> set data.root to the folder that holds them, or data.download=true to fetch it there (2.3 GB)"
        )

    def _silences(self, root: Path, split: str, count: int) -> list[Cut]:
        """Draw pieces of background noise of a second each, from the part of every noise that belongs to a split."""
        if count == 0:
            return []
        noises = audio_files(root / _NOISE)
        if not noises:
            raise DataError(f"{root / _NOISE}: holds no audio\n    -> set data.silence=0")
        rng = np.random.default_rng([self.seed, SPLITS.index(split)])
        begin, end = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}[split]
        cuts = []
        for index in range(count):
            path = noises[index % len(noises)]
            rate, samples, channels = read_header(path, None)
            low, high = round(begin * samples), round(end * samples)
            length = min(rate, high - low)
            start = int(rng.integers(low, high - length + 1))
            name = f"{SILENCE}/{path.stem}-{start}-{index}"
            cuts.append(Cut(name, SILENCE, length / rate, rate, path=str(path), start=start / rate, channels=channels))
        return cuts


def _cut(path: Path) -> Cut:
    """Return the utterance of a file `WORD/SPEAKER_nohash_NUMBER.wav`."""
    rate, count, channels = read_header(path, None)
    speaker = _SPEAKER.match(path.name)
    return make_cut(
        f"{path.parent.name}/{path.stem}",
        path,
        num_samples=count,
        sample_rate=rate,
        text=path.parent.name,
        speaker=speaker["speaker"] if speaker else None,
        channels=channels,
    )
