"""`data=manifest`: manifests of JSON lines as NeMo writes them, one utterance a line.

    {"audio_filepath": "audio/a.flac", "duration": 1.25, "text": "seven", "utt_id": "a", "speaker": "theo"}

`utt_id` and `speaker` are optional. Paths are relative to the manifest and stay inside `root`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechtrain.data.corpus import SPLITS, Corpus, Cut, Skip, clean_text, make_cut, read_header
from speechtrain.data.splits import complete_splits
from speechtrain.data.text.lines import numbered_lines, parse_json
from speechtrain.errors import DataError
from speechtrain.files import user_path

_REQUIRED = ("audio_filepath", "text")
_LONGEST = 1e9
"""Seconds that a line may state: 30 years, so that no arithmetic overflows."""
_NAMES = ("utt_id", "speaker")
_READ = ("utt_id", "audio_filepath", "duration", "text", "speaker")
"""Keys with a meaning; `words` gives word times, and the error report is divided by all others."""


class Manifest:
    """A corpus described by manifests of JSON lines.

    Args:
        root: folder of the manifests; audio outside of it is refused.
        train: manifest or manifests, relative to `root`.
        val, test: the same for those splits; None takes them from `train` as `split` says.
        split: `by`, `val`, `test`, `seed`, as `split_cuts` takes them.
        sample_rate: rate in Hz that every file must have; None: any.
        duration_tolerance: s that a stated duration may differ from the file's.
        trust_durations: take every line's `duration` as it is and open no file; `sample_rate` must be given.
    """

    def __init__(
        self,
        root: str,
        train: str | Sequence[str],
        val: str | Sequence[str] | None,
        test: str | Sequence[str] | None,
        split: dict[str, Any],
        sample_rate: int | None = None,
        duration_tolerance: float = 0.1,
        trust_durations: bool = False,
    ) -> None:
        self.root = _absolute(user_path(root))
        self.files = {"train": _as_list(train), "val": _as_list(val), "test": _as_list(test)}
        self.split = split
        self.sample_rate = sample_rate
        self.duration_tolerance = duration_tolerance
        self.trust_durations = trust_durations
        self._inside = f"{self.root}{os.sep}"

    def load(self, limit: int | None) -> Corpus:
        """Read every manifest, and the header of every audio file unless the manifests are trusted.

        Raises:
            DataError: a manifest holds no usable utterance.
        """
        skipped: list[Skip] = []
        cuts: dict[str, list[Cut]] = {name: [] for name in SPLITS}
        for name, files in self.files.items():
            for file in files:
                usable = self._read(self.root / file, name, skipped)
                if not usable:
                    raise DataError(_nothing_usable(self.root / file, skipped))
                cuts[name] += usable
        missing = [part for part in ("val", "test") if not self.files[part]]
        return Corpus(complete_splits(cuts, missing, self.split, limit), skipped)

    def _read(self, path: Path, split: str, skipped: list[Skip]) -> list[Cut]:
        cuts = []
        folder = str(_absolute(path.parent))
        for where, line in numbered_lines(path):
            try:
                cuts.append(self._cut(_parse(line), folder))
            except DataError as error:
                skipped.append(Skip(split, where, str(error)))
        return cuts

    def _cut(self, entry: dict[str, Any], folder: str) -> Cut:
        """Return the utterance of a line in a manifest of a folder."""
        text = clean_text(entry["text"])
        if not text:
            raise DataError("'text' is empty")
        path = os.path.normpath(os.path.join(folder, entry["audio_filepath"]))  # noqa: PTH118 # a Path takes ten times as long
        if not path.startswith(self._inside):
            raise DataError(f"audio_filepath {entry['audio_filepath']!r} leaves the data folder {self.root}")
        rate, num_samples = self._length(entry.get("duration"), path)
        speaker = entry.get("speaker")
        return make_cut(
            str(entry.get("utt_id") or Path(path).relative_to(self.root).with_suffix("").as_posix()),
            path,
            num_samples=num_samples,
            sample_rate=rate,
            text=text,
            speaker=None if speaker is None else sys.intern(str(speaker)),
            custom={key: value for key, value in entry.items() if key not in _READ and (key != "words" or isinstance(value, list))},
        )

    def _length(self, stated: Any, path: str) -> tuple[int, int]:
        """Return the rate in Hz and the number of samples of a file, whose line states a duration in seconds or none."""
        if stated is not None and (isinstance(stated, bool) or not isinstance(stated, (int, float)) or not abs(stated) <= _LONGEST):
            raise DataError(f"'duration' must be a number of seconds, received {stated!r:.60}")
        if self.trust_durations:
            assert self.sample_rate is not None
            if stated is None or stated <= 0:
                raise DataError(f"'duration' must be above 0 s, received {stated!r}; data.trust_durations=true goes by it")
            return self.sample_rate, round(stated * self.sample_rate)
        rate, num_samples = read_header(Path(path), self.sample_rate)
        if stated is not None and not abs(stated - num_samples / rate) <= self.duration_tolerance:
            raise DataError(f"'duration' is {stated} s, but {Path(path).name} lasts {num_samples / rate:.3f} s")
        return rate, num_samples


def _parse(line: str) -> dict[str, Any]:
    """Return the JSON object of a line, with texts under the keys that are required."""
    entry = parse_json(line)
    if not isinstance(entry, dict):
        raise DataError(f"must be a JSON object, received {line[:60]!r}")
    for key in _REQUIRED:
        if key not in entry:
            raise DataError(f"key '{key}' is missing; there is: {', '.join(map(str, entry))}")
        if not isinstance(entry[key], str):
            raise DataError(f"'{key}' must be a text, received {entry[key]!r:.60}")
    for key in _NAMES:
        if isinstance(entry.get(key), (bool, list, dict)):
            raise DataError(f"'{key}' must be a text or a number, received {entry[key]!r:.60}")
    return entry


def _absolute(path: Path) -> Path:
    """Make a path absolute and resolve `..`; links are left alone, so that a folder of the corpus may be a link to a larger disk."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _as_list(names: str | Sequence[str] | None) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def _nothing_usable(path: Path, skipped: Sequence[Skip]) -> str:
    first = next((skip for skip in skipped if skip.where.startswith(f"{path}:")), None)
    if first is None:
        return f"{path} is empty: no line, no utterance\n    -> give a manifest with one JSON object a line"
    count = sum(skip.where.startswith(f"{path}:") for skip in skipped)
    return f"{path}: none of its {count} lines can be used; the first:\n  {first.where}: {first.reason}"
