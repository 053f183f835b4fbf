"""`data=lhotse`: cuts that Lhotse wrote, as a manifest (`cuts.jsonl.gz`) or as Shar folders with the audio inside."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lhotse import CutSet, MonoCut, Recording
from lhotse.audio import AudioSource
from lhotse.audio.backend import LibsndfileBackend, set_current_audio_backend
from lhotse.serialization import deserialize_item, load_jsonl
from lhotse.utils import fastcopy

from speechtrain.data.audio import Audio, from_samples
from speechtrain.data.corpus import SPLITS, Corpus, Cut, Skip, clean_text
from speechtrain.data.splits import complete_splits
from speechtrain.errors import DataError, first_line
from speechtrain.files import is_file, is_folder, user_path

set_current_audio_backend(LibsndfileBackend())  # torchaudio's, which Lhotse would take, needs torchcodec


class _TarMember(NamedTuple):
    """Where encoded audio lies inside a tar file, in bytes."""

    tar: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Read the encoded audio."""
        try:
            with Path(self.tar).open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise DataError(f"{self.tar}: cannot be read ({error})") from error


@dataclass(frozen=True, slots=True)
class LhotseRecording:
    """A recording that Lhotse reads, because it has transforms, several channels, or another source than a file.

    Attributes:
        recording: Lhotse's description of the recording.
        member: where its encoded audio lies in a tar file; None: where the description says.
    """

    recording: Recording
    member: _TarMember | None = None

    def read(self, cut: Cut, rate: int) -> Audio:
        """Read the samples (N,) of an utterance at `rate` Hz.

        Raises:
            DataError: the audio cannot be read, is empty, or holds NaN or infinite samples.
        """
        recording, name = self.recording, cut.path or cut.id
        if self.member is not None:
            name = f"{self.member.tar}, '{cut.id}'"
            recording = fastcopy(recording, sources=[AudioSource("memory", [0], self.member.read())])
        try:
            samples = MonoCut(cut.id, cut.start, cut.duration, cut.channel or 0, recording=recording).load_audio()[0]
        except Exception as error:  # the decoders' exceptions have no common type
            if cut.path is not None and not is_file(Path(cut.path)):
                raise DataError(f"no such file: {cut.path}") from None
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"{name}: cannot be read as audio ({reason[-1]})") from error
        return from_samples(samples, cut.sample_rate, rate, name=name)


def is_plain_file(kind: str, channel: Any, source: str, channels: Sequence[int], transforms: Any) -> bool:
    """Return whether a cut is a part of the only channel of a file, without transforms, which is read without Lhotse."""
    return kind == "MonoCut" and channel == 0 and source == "file" and list(channels) == [0] and not transforms


def _items(path: Path) -> Iterator[tuple[Any, _TarMember | None]]:
    """Read the items of a manifest: the dictionaries of its lines where it is JSON lines, otherwise cuts; none is in a tar file."""
    for item in load_jsonl(path) if ".jsonl" in path.suffixes else CutSet.from_file(path):
        yield item, None


class LhotseCuts:
    """A corpus of cuts that Lhotse wrote; each supervision is an utterance.

    Args:
        root: folder that relative paths of recordings are relative to.
        train: a manifest of cuts, or a folder in Shar format, in `root`.
        val, test: the same for those splits; None takes them from `train` as `split` says.
        split: `by`, `val`, `test`, `seed`, as `split_cuts` takes them.
    """

    def __init__(self, root: str, train: str, val: str | None, test: str | None, split: dict[str, Any]) -> None:
        self.root = user_path(root).absolute()
        self.parts = {"train": train, "val": val, "test": test}
        self.split = split
        self._base = str(self.root)

    def load(self, limit: int | None) -> Corpus:
        """Read the manifests; audio is read when a batch needs it.

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
                for item, member in _shar_items(path) if is_folder(path) else _items(path):
                    cut = self._simple_cut(item) if isinstance(item, dict) else None
                    if cut is not None:
                        cuts[split].append(cut)
                    else:
                        cuts[split] += self._cuts_of(item, member, split, skipped)
            except DataError:
                raise
            except Exception as error:  # Lhotse raises anything for a damaged manifest
                raise DataError(
                    f"{path}: cannot be read as Lhotse cuts ({type(error).__name__}: {first_line(error, most=120)})\n"
                    "    -> give a file that CutSet.to_file wrote, or a folder that CutSet.to_shar wrote"
                ) from error
            if not cuts[split]:
                first = f"; the first: {skipped[0].where}: {skipped[0].reason}" if skipped else ""
                raise DataError(f"{path}: holds no cut that can be used{first}")
        missing = [name for name in ("val", "test") if self.parts[name] is None]
        return Corpus(complete_splits(cuts, missing, self.split, limit), skipped)

    def _absolute(self, source: str) -> str:
        return os.path.join(self._base, source)  # noqa: PTH118 # a Path takes ten times as long, which adds up

    def _simple_cut(self, item: dict[str, Any]) -> Cut | None:
        """Return the utterance of a manifest's line that is a part of a file with one channel and one text; None for any other line."""
        try:
            recording, (supervision,), custom = item["recording"], item["supervisions"], item.get("custom")
            (source,) = recording["sources"]
            text = clean_text(supervision["text"])
            if not text or not is_plain_file(
                item["type"], item["channel"], source["type"], source["channels"], recording.get("transforms")
            ):
                return None
            speaker = supervision.get("speaker")
            return Cut(
                str(item["id"]),
                text,
                item["duration"],
                recording["sampling_rate"],
                None if speaker is None else sys.intern(str(speaker)),
                self._absolute(source["source"]),
                item["start"],
                channel=0,
                **({"custom": custom} if custom else {}),
            )
        except (KeyError, ValueError, TypeError):
            return None  # Lhotse reports what is wrong with it

    def _cuts_of(self, item: Any, member: _TarMember | None, split: str, skipped: list[Skip]) -> Iterator[Cut]:
        """Make an utterance of each supervision of a Lhotse cut, whose audio may lie in a tar file."""
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
                if source.type == "file" and member is None:
                    path = self._absolute(source.source)
                    recording = fastcopy(recording, sources=[fastcopy(source, source=path)])
                is_simple = path is not None and is_plain_file("MonoCut", piece.channel, source.type, source.channels, recording.transforms)
                yield Cut(
                    str(piece.id),
                    text,
                    piece.duration,
                    recording.sampling_rate,
                    piece.supervisions[0].speaker,
                    path,
                    piece.start,
                    piece.channel,
                    None if is_simple else LhotseRecording(recording, member),
                    piece.custom or {},
                )
        except DataError as error:
            skipped.append(Skip(split, str(cut.id), str(error)))


def _shar_items(folder: Path) -> Iterator[tuple[MonoCut, _TarMember]]:
    """Read the cuts of a folder in Shar format, and where their audio lies."""
    lists, tars = sorted(folder.glob("cuts.*.jsonl*")), sorted(folder.glob("recording.*.tar"))
    if not lists or len(lists) != len(tars):
        raise DataError(
            f"{folder}: holds {len(lists)} lists of cuts and {len(tars)} tar files of recordings\n"
            '    -> give a folder that CutSet.to_shar(..., {"recording": "flac"}) wrote'
        )
    for file, tar in zip(lists, tars, strict=True):
        recordings, members = _index(tar)
        for cut in CutSet.from_file(file):
            recording = recordings.get(str(cut.id))
            if recording is None:
                raise DataError(f"{tar}: holds no audio of '{cut.id}', which {file.name} lists")
            yield fastcopy(cut, recording=recording), members[str(cut.id)]


def _index(tar: Path) -> tuple[dict[str, Recording], dict[str, _TarMember]]:
    """Read from a tar file the descriptions of its recordings, and where their encoded audio lies, by id."""
    recordings, members = {}, {}
    with tarfile.open(tar) as archive:
        for member in archive:
            name, _, kind = member.name.rpartition(".")
            if kind == "json":
                content = archive.extractfile(member)
                assert content is not None
                recordings[name] = Recording.from_dict(json.load(content))
            else:
                members[name] = _TarMember(str(tar), member.offset_data, member.size)
    return recordings, members
