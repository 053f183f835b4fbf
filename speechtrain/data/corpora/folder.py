"""`data=folder`: audio files whose folder, or a file beside them, says their text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speechtrain.data.audio import AUDIO_SUFFIXES, UNREAD_SUFFIXES
from speechtrain.data.corpus import SPLITS, Corpus, Cut, NoTextError, Skip, audio_files, clean_text, make_cut, read_header
from speechtrain.data.cut_table import CutTable, TableWriter
from speechtrain.data.splits import complete_splits
from speechtrain.data.text.lines import read_text
from speechtrain.errors import DataError
from speechtrain.files import is_file, user_path

_TEXT_SUFFIXES = (".txt", ".lab")


class Folder:
    """A corpus of the audio files under a folder.

    Args:
        root: the folder.
        labels: where the text of a file is: `folder`, it is the name of the folder that the file is in; `file`, in a .txt or .lab file
            of the same name beside it; `auto`, `file` if there is any such file, else `folder`.
        train, val, test: folders inside `root`; those of val and test are left out of a train that holds them. None: see `split`.
        split: `by`, `val`, `test`, `seed`, as `split_cuts` takes them, where val or test is None.
        speaker: `folder`, the name of the folder that a file is in; or a regular expression with a group `speaker`, searched in the path
            relative to `root`; None: speakers are not known.
        sample_rate: rate in Hz that every file must have; None: any.
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
        self.root = user_path(root).absolute()
        self.labels = labels
        self.parts = {"train": train, "val": val, "test": test}
        self.split = split
        self.speaker = re.compile(speaker) if speaker not in (None, "folder") else speaker
        self.sample_rate = sample_rate

    def load(self, limit: int | None) -> Corpus:
        """Find the audio files and read the header of each.

        Raises:
            DataError: there is no audio, or none that can be used.
        """
        folders = {name: (self.root / part).absolute() for name, part in self.parts.items() if part is not None}
        skipped: list[Skip] = []
        writers = {name: TableWriter() for name in SPLITS}
        for name, folder in folders.items():
            inner = [other for other in folders.values() if other != folder and other.is_relative_to(folder)]
            found = audio_files(folder, (*AUDIO_SUFFIXES, *UNREAD_SUFFIXES))
            files = [path for path in found if not any(path.is_relative_to(other) for other in inner)]
            if not files:
                raise DataError(
                    f"{folder}: holds no audio ({', '.join(AUDIO_SUFFIXES)})\n    -> set data.root to the folder above the audio"
                )
            before = len(skipped)
            beside = self.labels == "file" or (self.labels == "auto" and any(_text_file(path) is not None for path in files))
            for cut in self._cuts(files, folder, name, skipped, beside=beside):
                writers[name].append(cut)
            if not len(writers[name]) and not any(skip.cut for skip in skipped[before:]):
                first = skipped[before]
                raise DataError(f"{folder}: none of its {len(files)} files can be used; the first:\n  {first.where}: {first.reason}")
        cuts = {name: CutTable(writer.columns()) for name, writer in writers.items()}
        missing = [part for part in ("val", "test") if self.parts[part] is None]
        return Corpus(complete_splits(cuts, missing, self.split, limit), skipped)

    def _cuts(self, files: Iterable[Path], folder: Path, split: str, skipped: list[Skip], *, beside: bool) -> Iterable[Cut]:
        for path in files:
            try:
                yield self._cut(path, folder, beside=beside)
            except DataError as error:
                skipped.append(Skip.of(split, str(path), error))

    def _cut(self, path: Path, folder: Path, *, beside: bool) -> Cut:
        if beside:
            source = _text_file(path)
            if source is None:
                raise DataError(f"there is no {path.stem}.txt or {path.stem}.lab beside it")
            text = clean_text(read_text(source))
        elif path.parent == folder:
            raise DataError(f"is in {folder} itself, so no folder says what it is")
        else:
            text = clean_text(path.relative_to(folder).parts[0])
        rate, num_samples, channels = read_header(path, self.sample_rate)
        name = path.relative_to(self.root).with_suffix("").as_posix()
        speaker = self._speaker(path)
        cut = make_cut(name, path, num_samples=num_samples, sample_rate=rate, text=text, speaker=speaker, channels=channels)
        if not text:
            raise NoTextError(str(_text_file(path)), cut)
        return cut

    def _speaker(self, path: Path) -> str | None:
        if self.speaker is None:
            return None
        if isinstance(self.speaker, str):
            return path.parent.name
        name = path.relative_to(self.root).as_posix()
        match = self.speaker.search(name)
        if match is None or "speaker" not in match.groupdict():
            raise DataError(f"data.speaker={self.speaker.pattern!r} finds no group 'speaker' in {name!r}")
        return str(match["speaker"])


def _text_file(path: Path) -> Path | None:
    """Find the transcript beside an audio file."""
    return next((each for suffix in _TEXT_SUFFIXES if is_file(each := path.with_suffix(suffix))), None)
