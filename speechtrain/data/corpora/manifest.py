"""`data=manifest`: JSON lines as NeMo writes them, one utterance a line.

    {"audio_filepath": "audio/a.flac", "duration": 1.25, "text": "seven", "utt_id": "a", "speaker": "theo"}

`utt_id` and `speaker` are optional. Paths are relative to the manifest and stay inside `root`.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechtrain.data.corpus import SPLITS, Corpus, Cut, Skip, clean_text, make_cut, read_header
from speechtrain.data.splits import fill_splits, refuse_repeated_ids, spread
from speechtrain.errors import DataError

_KEYS = ("audio_filepath", "text")


_READ = ("utt_id", "audio_filepath", "duration", "text", "speaker")
"""Fields with a meaning; `words` gives word times, all others divide the error report."""


class Manifest:
    """A corpus described by JSON lines.

    Args:
        root: folder that manifests are in and audio may not leave.
        train: manifest or manifests, relative to `root`.
        val, test: likewise; None takes them from `train` as `split` says.
        split: `by` (speaker or utterance), `val` and `test` (per cent, or a list of speakers), `seed`.
        sample_rate: expected rate in Hz; a file of another rate is bad. None accepts any.
        duration_tolerance: seconds that a stated duration may differ from the file's.
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
        self.root = _plain(Path(root).expanduser())
        self.files = {"train": _list(train), "val": _list(val), "test": _list(test)}
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
        cuts: dict[str, list[Cut]] = {}
        for name in SPLITS:
            cuts[name] = []
            for file in self.files[name]:
                found = self._read(self.root / file, name, skipped)
                if not found:
                    raise DataError(_nothing_usable(self.root / file, skipped))
                cuts[name] += found
        cuts = fill_splits(cuts, [part for part in ("val", "test") if not self.files[part]], self.split)
        refuse_repeated_ids(cuts)
        return Corpus({name: spread(cuts[name], limit) for name in SPLITS}, skipped)

    def _read(self, path: Path, split: str, skipped: list[Skip]) -> list[Cut]:
        cuts = []
        folder = str(_plain(path.parent))
        for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                cuts.append(self._cut(line, folder))
            except DataError as error:
                skipped.append(Skip(split, f"{path}:{number}", str(error)))
        return cuts

    def _cut(self, line: str, folder: str) -> Cut:
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"not JSON ({error}), received {line[:60]!r}") from None
        if not isinstance(entry, dict):
            raise DataError(f"must be a JSON object, received {line[:60]!r}")
        for key in _KEYS:
            if key not in entry:
                raise DataError(f"key '{key}' is missing; there is: {', '.join(map(str, entry))}")
            if not isinstance(entry[key], str):
                raise DataError(f"'{key}' must be a text, received {entry[key]!r}")
        text = clean_text(entry["text"])
        if not text:
            raise DataError("'text' is empty")
        path = os.path.normpath(os.path.join(folder, entry["audio_filepath"]))  # noqa: PTH118 # a Path takes ten times as long
        if not path.startswith(self._inside):
            raise DataError(f"audio_filepath {entry['audio_filepath']!r} leaves the data folder {self.root}")
        stated = entry.get("duration")
        if stated is not None and (isinstance(stated, bool) or not isinstance(stated, (int, float))):
            raise DataError(f"'duration' must be a number of seconds, received {stated!r}")
        if self.trust_durations:
            assert self.sample_rate is not None
            if stated is None or not 0 < stated < math.inf:
                raise DataError(f"'duration' must be above 0 s, received {stated!r}; data.trust_durations=true goes by it")
            rate, num_samples = self.sample_rate, round(stated * self.sample_rate)
        else:
            rate, num_samples = read_header(Path(path), self.sample_rate)
            if stated is not None and not abs(stated - num_samples / rate) <= self.duration_tolerance:
                raise DataError(f"'duration' is {stated} s, but {Path(path).name} lasts {num_samples / rate:.3f} s")
        speaker = entry.get("speaker")
        custom = {key: value for key, value in entry.items() if key not in _READ and (key != "words" or isinstance(value, list))}
        utt_id = str(entry.get("utt_id") or Path(path).relative_to(self.root).with_suffix("").as_posix())
        return make_cut(
            utt_id,
            path,
            num_samples=num_samples,
            sample_rate=rate,
            text=text,
            speaker=None if speaker is None else sys.intern(str(speaker)),
            custom=custom,
        )


def _plain(path: Path) -> Path:
    """Absolute, without `..`; links are left alone, so that a folder of the corpus may be a link to a larger disk."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _list(names: str | Sequence[str] | None) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def _nothing_usable(path: Path, skipped: list[Skip]) -> str:
    mine = [item for item in skipped if item.where.startswith(f"{path}:")]
    if not mine:
        return f"{path} is empty: no line, no utterance\n    -> give a manifest with one JSON object a line"
    return f"{path}: none of its {len(mine)} lines can be used; the first:\n  {mine[0].where}: {mine[0].reason}"
