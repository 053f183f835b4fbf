"""`data=folder` and `data=speech_commands`: audio whose place, or a file beside it, says what it is."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechtrain.data.audio import AUDIO_SUFFIXES
from speechtrain.data.corpus import SPLITS, Corpus, Cut, Skip, audio_files, clean_text, make_cut, read_header
from speechtrain.data.splits import fill_splits, spread
from speechtrain.errors import DataError

log = logging.getLogger(__name__)

_TEXT_SUFFIXES = (".txt", ".lab")


class Folder:
    """Audio files under a folder.

    Args:
        root: the folder.
        labels: what says the text of a file: `folder`, the name of the one it is in; `file`, a .txt or .lab of its name beside it; `auto`:
            `file` if there is any such file, else `folder`.
        train, val, test: folders inside `root`; those of val and test are left out of a train that holds them. None: see `split`.
        split: `by`, `val`, `test`, `seed`, as `split_cuts` takes them, where val or test is None.
        speaker: `folder`, the name of the one that a file is in; or a regular expression with a group `speaker`, searched in the path
            relative to `root`; None: speakers are not known.
        sample_rate: Hz that every file must have; None: any.
    """

    def __init__(
        self,
        root: str,
        labels: str,
        train: str,
        val: str | None,
        test: str | None,
        split: dict[str, Any],
        speaker: str | None = None,
        sample_rate: int | None = None,
    ) -> None:
        self.root = Path(root).expanduser().absolute()
        self.labels = labels
        self.parts = {"train": train, "val": val, "test": test}
        self.split = split
        self.speaker = re.compile(speaker) if speaker not in (None, "folder") else speaker
        self.sample_rate = sample_rate

    def load(self, limit: int | None) -> Corpus:
        """Find the files and read the header of each.

        Raises:
            DataError: there is no audio, or none that can be used.
        """
        folders = {name: (self.root / part).absolute() for name, part in self.parts.items() if part is not None}
        skipped: list[Skip] = []
        cuts: dict[str, list[Cut]] = {name: [] for name in SPLITS}
        for name, folder in folders.items():
            inner = [other for other in folders.values() if other != folder and other.is_relative_to(folder)]
            files = [path for path in audio_files(folder) if not any(path.is_relative_to(other) for other in inner)]
            if not files:
                raise DataError(
                    f"{folder}: holds no audio ({', '.join(AUDIO_SUFFIXES)})\n    -> set data.root to the folder above the audio"
                )
            beside = self.labels == "file" or (self.labels == "auto" and any(_text_file(path) is not None for path in files))
            cuts[name] = list(self._cuts(files, folder, name, skipped, beside=beside))
            if not cuts[name]:
                raise DataError(
                    f"{folder}: none of its {len(files)} files can be used; the first:\n  {skipped[0].where}: {skipped[0].reason}"
                )
        cuts = fill_splits(cuts, [part for part in ("val", "test") if self.parts[part] is None], self.split)
        return Corpus({name: spread(cuts[name], limit) for name in SPLITS}, skipped)

    def _cuts(self, files: Iterable[Path], folder: Path, split: str, skipped: list[Skip], *, beside: bool) -> Iterable[Cut]:
        for path in files:
            try:
                yield self._cut(path, folder, beside=beside)
            except DataError as error:
                skipped.append(Skip(split, str(path), str(error)))

    def _cut(self, path: Path, folder: Path, *, beside: bool) -> Cut:
        if beside:
            source = _text_file(path)
            if source is None:
                raise DataError(f"there is no {path.stem}.txt or {path.stem}.lab beside it")
            try:
                text = clean_text(source.read_text(encoding="utf-8-sig"))
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{source} cannot be read ({error})") from None
            if not text:
                raise DataError(f"{source} is empty")
        elif path.parent == folder:
            raise DataError(f"stands in {folder} itself, so no folder says what it is")
        else:
            text = clean_text(path.relative_to(folder).parts[0])
        rate, num_samples = read_header(path, self.sample_rate)
        name = path.relative_to(self.root).with_suffix("").as_posix()
        return make_cut(name, path, num_samples=num_samples, sample_rate=rate, text=text, speaker=self._speaker(path))

    def _speaker(self, path: Path) -> str | None:
        if self.speaker is None:
            return None
        if isinstance(self.speaker, str):
            return path.parent.name
        name = path.relative_to(self.root).as_posix()
        found = self.speaker.search(name)
        if found is None or "speaker" not in found.groupdict():
            raise DataError(f"data.speaker={self.speaker.pattern!r} finds no group 'speaker' in {name!r}")
        return str(found["speaker"])


def _text_file(path: Path) -> Path | None:
    return next((each for suffix in _TEXT_SUFFIXES if (each := path.with_suffix(suffix)).is_file()), None)


SILENCE = "_silence_"
_NOISE = "_background_noise_"
_LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}
_SPEAKER = re.compile(r"^(?P<speaker>.+?)_nohash_")


class SpeechCommands:
    """Speech Commands (Warden 2018), version 1 or 2: one word a file, split by its own lists, in which no speaker is twice.

    Args:
        root: of the data: a folder a word, `validation_list.txt`, `testing_list.txt` and, for silence, `_background_noise_`; or the
            folder that it is downloaded to, above `SpeechCommands/speech_commands_v0.02`.
        download: fetch version 2 (2.3 GB) through torchaudio, which checks it, if it is not there.
        words: to be read; None: all.
        silence: seconds of background noise with the text `_silence_`, as a share of the utterances of each split; no part of a
            noise is in two splits.
        seed: of the places in the noise.
    """

    def __init__(self, root: str, download: bool, words: Sequence[str] | None, silence: float, seed: int) -> None:
        self.root = Path(root).expanduser().absolute()
        self.download = download
        self.words = list(words) if words is not None else None
        self.silence = silence
        self.seed = seed

    def load(self, limit: int | None) -> Corpus:
        """Read the lists and the header of every file.

        Raises:
            DataError: the data is not there, a list is missing, or a word has no folder.
        """
        root = self._found()
        listed = {split: _lines(root / name) for split, name in _LISTS.items()}
        split_of = {name: split for split, names in listed.items() for name in names}
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(("_", ".")))
        names = [path.name for path in folders]
        if missing := [word for word in self.words or () if word not in names]:
            raise DataError(f"data.words: {root} has no folder for {', '.join(missing)}; there is: {', '.join(names)}")
        skipped: list[Skip] = []
        cuts: dict[str, list[Cut]] = {name: [] for name in SPLITS}
        for folder in folders:
            if self.words is not None and folder.name not in self.words:
                continue
            for path in audio_files(folder):
                name = f"{folder.name}/{path.name}"
                split = split_of.get(name, "train")
                try:
                    rate, count = read_header(path, None)
                except DataError as error:
                    skipped.append(Skip(split, str(path), str(error)))
                    continue
                speaker = _SPEAKER.match(path.name)
                cuts[split].append(
                    make_cut(
                        f"{folder.name}/{path.stem}",
                        path,
                        num_samples=count,
                        sample_rate=rate,
                        text=folder.name,
                        speaker=speaker["speaker"] if speaker else None,
                    )
                )
        for split in SPLITS:
            words = spread(cuts[split], limit)
            cuts[split] = words + self._silences(root, split, round(self.silence * len(words)))
        if not cuts["train"]:
            raise DataError(f"{root}: no utterance is left to train on")
        return Corpus(cuts, skipped)

    def _found(self) -> Path:
        inside = self.root / "SpeechCommands" / "speech_commands_v0.02"
        for place in (self.root, inside):
            if all((place / name).is_file() for name in _LISTS.values()):
                return place
        if self.download:
            from torchaudio.datasets import SPEECHCOMMANDS

            log.info("downloading Speech Commands to %s", self.root)
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                SPEECHCOMMANDS(self.root, download=True)
            except (OSError, RuntimeError) as error:
                raise DataError(f"{self.root}: Speech Commands could not be downloaded ({error})\n    -> look at the network") from error
            return inside
        raise DataError(
            f"{self.root}: is not Speech Commands ({' and '.join(_LISTS.values())} are missing)\n"
            "    -> set data.root to the folder that holds them, or data.download=true to fetch it there (2.3 GB)"
        )

    def _silences(self, root: Path, split: str, count: int) -> list[Cut]:
        if count == 0:
            return []
        noises = audio_files(root / _NOISE)
        if not noises:
            raise DataError(f"{root / _NOISE}: holds no audio\n    -> set data.silence=0")
        rng = np.random.default_rng([self.seed, SPLITS.index(split)])
        begin, end = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}[split]
        found = []
        for index in range(count):
            path = noises[index % len(noises)]
            rate, samples = read_header(path, None)
            low, high = round(begin * samples), round(end * samples)
            length = min(rate, high - low)
            start = int(rng.integers(low, high - length + 1))
            name = f"{SILENCE}/{path.stem}-{start}-{index}"
            found.append(Cut(name, SILENCE, length / rate, rate, path=str(path), start=start / rate, recorded=samples))
        return found


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split()
