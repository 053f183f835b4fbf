"""`data=lhotse`: cuts that Lhotse wrote, as a manifest (`cuts.jsonl.gz`) or as Shar folders with the audio inside."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lhotse import CutSet, MonoCut, Recording
from lhotse.audio import AudioSource
from lhotse.serialization import deserialize_item, load_jsonl
from lhotse.utils import fastcopy

from speechtrain.data.audio import Audio
from speechtrain.data.corpus import SPLITS, Corpus, Cut, Skip, clean_text, read_audio
from speechtrain.data.splits import fill_splits, refuse_repeated_ids, spread
from speechtrain.errors import DataError, first_line


class _Place(NamedTuple):
    """Of encoded audio inside a tar file."""

    tar: str
    offset: int
    size: int


def is_plain(kind: str, channel: Any, source: str, channels: Sequence[int], transforms: Any) -> bool:
    """Whether a cut's audio is the first channel of a file and nothing is done to it."""
    return kind == "MonoCut" and channel == 0 and source == "file" and list(channels) == [0] and not transforms


def _listed(path: Path) -> Iterator[Any]:
    """What a manifest holds: the dictionaries of its lines, or cuts."""
    return load_jsonl(path) if ".jsonl" in path.suffixes else iter(CutSet.from_file(path))


class LhotseCuts:
    """A corpus of Lhotse's.

    Args:
        root: folder; relative paths of recordings are relative to it.
        train: in `root`, a manifest of cuts or a folder in Shar format.
        val, test: likewise; None takes them from `train` as `split` says.
        split: `by`, `val`, `test`, `seed`, as `split_cuts` takes them.
    """

    def __init__(self, root: str, train: str, val: str | None, test: str | None, split: dict[str, Any]) -> None:
        self.root = Path(root).expanduser().absolute()
        self.parts = {"train": train, "val": val, "test": test}
        self.split = split
        self._places: dict[str, _Place] = {}
        self._base = str(self.root)

    def load(self, limit: int | None) -> Corpus:
        """Read the manifests; the audio of Shar is found again when it is needed.

        Raises:
            DataError: a manifest cannot be read, or holds no cut with a text.
        """
        skipped: list[Skip] = []
        cuts: dict[str, list[Cut]] = {name: [] for name in SPLITS}
        for split, part in self.parts.items():
            if part is None:
                continue
            path = self.root / part
            try:
                for found in self._shar(path) if path.is_dir() else _listed(path):
                    cut = self._plain(found) if isinstance(found, dict) else None
                    if cut is not None:
                        cuts[split].append(cut)
                    else:
                        cuts[split] += self._pieces(found, split, skipped)
            except DataError:
                raise
            except Exception as error:  # whatever a damaged manifest makes Lhotse say
                raise DataError(
                    f"{path}: cannot be read as cuts of Lhotse's ({type(error).__name__}: {first_line(error, most=120)})\n"
                    "    -> give a file that CutSet.to_file wrote, or a folder that CutSet.to_shar wrote"
                ) from error
            if not cuts[split]:
                first = f"; the first: {skipped[0].where}: {skipped[0].reason}" if skipped else ""
                raise DataError(f"{path}: holds no cut that can be used{first}")
        cuts = fill_splits(cuts, [name for name in ("val", "test") if self.parts[name] is None], self.split)
        refuse_repeated_ids(cuts)
        return Corpus({name: spread(cuts[name], limit) for name in SPLITS}, skipped, read=self.read if self._places else read_audio)

    def read(self, cut: Cut, rate: int) -> Audio:
        """Samples (N,) of a cut at `rate` Hz.

        Raises:
            DataError: as `read_audio`.
        """
        if (key := cut.custom.get("shar")) is None:
            return read_audio(cut, rate)
        place = self._places[key]
        try:
            with Path(place.tar).open("rb") as file:
                file.seek(place.offset)
                source = AudioSource("memory", [0], file.read(place.size))
        except OSError as error:
            raise DataError(f"{place.tar}: cannot be read ({error})") from error
        return read_audio(replace(cut, recording=fastcopy(cut.recording, sources=[source])), rate, name=f"{place.tar}, '{cut.id}'")

    def _place(self, source: str) -> str:
        return os.path.join(self._base, source)  # noqa: PTH118 # a Path takes ten times as long, which adds up

    def _plain(self, item: dict[str, Any]) -> Cut | None:
        """What the line of a manifest says, if that is a part of the one channel of a file with one text, as it mostly is."""
        try:
            recording, (supervision,), custom = item["recording"], item["supervisions"], item.get("custom")
            (source,) = recording["sources"]
            text = clean_text(supervision["text"])
            if not text or not is_plain(item["type"], item["channel"], source["type"], source["channels"], recording.get("transforms")):
                return None
            speaker = supervision.get("speaker")
            return Cut(
                str(item["id"]),
                text,
                item["duration"],
                recording["sampling_rate"],
                None if speaker is None else sys.intern(str(speaker)),
                self._place(source["source"]),
                item["start"],
                channel=0,
                recorded=recording["num_samples"],
                **({"custom": custom} if custom else {}),
            )
        except (KeyError, ValueError, TypeError):
            return None  # Lhotse says what is wrong with it

    def _pieces(self, item: Any, split: str, skipped: list[Skip]) -> Iterator[Cut]:
        """One cut for each of its supervisions."""
        cut = deserialize_item(item) if isinstance(item, dict) else item
        try:
            if not isinstance(cut, MonoCut) or not cut.has_recording:
                raise DataError(f"is a {type(cut).__name__} without a recording of its own; only cuts of one recording can be read")
            if not cut.supervisions:
                raise DataError("has no supervision, so there is no text")
            if any(source.type == "command" for source in cut.recording.sources):
                raise DataError("its audio comes from a command, which is not run; write its output to a file and name that")
            for piece in cut.trim_to_supervisions(keep_overlapping=False) if len(cut.supervisions) > 1 else [cut]:
                text = clean_text(piece.supervisions[0].text or "")
                if not text:
                    raise DataError("its text is empty")
                recording, path = piece.recording, None
                source = recording.sources[0]
                if source.type == "file" and "shar" not in (piece.custom or {}):
                    path = self._place(source.source)
                    recording = fastcopy(recording, sources=[fastcopy(source, source=path)])
                plain = path is not None and is_plain("MonoCut", piece.channel, source.type, source.channels, recording.transforms)
                yield Cut(
                    str(piece.id),
                    text,
                    piece.duration,
                    recording.sampling_rate,
                    piece.supervisions[0].speaker,
                    path,
                    piece.start,
                    piece.channel,
                    recording.num_samples,
                    None if plain else recording,
                    piece.custom or {},
                )
        except DataError as error:
            skipped.append(Skip(split, str(cut.id), str(error)))

    def _shar(self, folder: Path) -> Iterator[MonoCut]:
        """Cuts of a folder in Shar format with the places of their audio."""
        lists, tars = sorted(folder.glob("cuts.*.jsonl*")), sorted(folder.glob("recording.*.tar"))
        if not lists or len(lists) != len(tars):
            raise DataError(
                f"{folder}: holds {len(lists)} lists of cuts and {len(tars)} tar files of recordings\n"
                '    -> give a folder that CutSet.to_shar(..., {"recording": "flac"}) wrote'
            )
        for file, tar in zip(lists, tars, strict=True):
            recordings = self._index(tar)
            for cut in CutSet.from_file(file):
                recording = recordings.get(str(cut.id))
                if recording is None:
                    raise DataError(f"{tar}: holds no audio of '{cut.id}', which {file.name} lists")
                yield fastcopy(cut, recording=recording, custom={**(cut.custom or {}), "shar": f"{tar}/{cut.id}"})

    def _index(self, tar: Path) -> dict[str, Recording]:
        found = {}
        with tarfile.open(tar) as archive:
            for member in archive:
                name, _, kind = member.name.rpartition(".")
                if kind == "json":
                    content = archive.extractfile(member)
                    assert content is not None
                    found[name] = Recording.from_dict(json.load(content))
                else:
                    self._places[f"{tar}/{name}"] = _Place(str(tar), member.offset_data, member.size)
        return found
