"""`data=lhotse`: cuts that Lhotse wrote, as a manifest (`cuts.jsonl.gz`) or as Shar folders with the audio inside."""

from __future__ import annotations

import math
import os
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lhotse import CutSet, MonoCut, Recording
from lhotse.audio import AudioSource
from lhotse.audio.backend import LibsndfileBackend, set_current_audio_backend
from lhotse.cut import Cut as LhotseCut
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from speechtrain.data.audio import MOST_SAMPLES, Audio, check_file, check_rate, from_samples
from speechtrain.data.corpus import SPLITS, Corpus, Cut, Skip, check_name, check_text, clean_text
from speechtrain.data.splits import complete_splits
from speechtrain.data.text.lines import numbered_lines, parse_json
from speechtrain.errors import DataError, first_line
from speechtrain.files import is_file, is_folder, open_regular, regular_size, user_path

set_current_audio_backend(LibsndfileBackend())  # torchaudio's, which Lhotse would take, needs torchcodec


class _TarMember(NamedTuple):
    """Where encoded audio lies inside a tar file, in bytes."""

    tar: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Read the encoded audio."""
        try:
            path = Path(self.tar)
            with open_regular(path) as file:
                file.seek(self.offset)
                return file.read(min(self.size, regular_size(path)))
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
            _check_resamplers(recording)
            for source in _mappings(self.recording.to_dict()):
                if source.get("type") == "file" and "source" in source:
                    check_file(Path(source["source"]))
            samples = MonoCut(cut.id, cut.start, cut.duration, cut.channel or 0, recording=recording).load_audio()[0]
        except DataError:
            raise
        except Exception as error:  # the decoders' exceptions have no common type
            if cut.path is not None and not is_file(Path(cut.path)):
                raise DataError(f"no such file: {cut.path}") from None
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"{name}: cannot be read as audio ({reason[-1]})") from error
        return from_samples(samples, cut.sample_rate, rate, name=name)


def is_plain_file(kind: str, channel: Any, source: str, channels: Sequence[int], transforms: Any) -> bool:
    """Return whether a cut is a part of the only channel of a file, without transforms, which is read without Lhotse."""
    return kind == "MonoCut" and channel == 0 and source == "file" and list(channels) == [0] and not transforms


def _items(path: Path) -> Iterator[tuple[str, Any, _TarMember | None]]:
    """Read the items of a manifest with their places, texts of JSON where it has one a line, otherwise cuts; none is in a tar file."""
    if ".jsonl" in path.suffixes:
        for where, line in numbered_lines(path):
            yield where, line, None
        return
    regular_size(path)
    for number, cut in enumerate(CutSet.from_file(path), start=1):
        yield f"{path}, cut {number}", cut, None


_READ_SOURCES = ("file", "memory", "shar")
"""Types of the sources that are read. Lhotse runs a `command`, and behind a `url` commands (`pipe:`) or asks a network."""


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yield a mapping and all mappings inside of it, at any depth."""
    inner = [value]
    while inner:
        each = inner.pop()
        if isinstance(each, dict):
            yield each
            inner += each.values()
        elif isinstance(each, (list, tuple)):
            inner += each


def _check_sources(value: Any) -> None:
    """Refuse a cut with a source that is no file anywhere, also in the impulse response of a transform: Lhotse would run it or fetch it.

    Raises:
        DataError: there is one.
    """
    for each in _mappings(value):
        if {"type", "source", "channels"} <= each.keys() and each["type"] not in _READ_SOURCES:
            kind = f"'{each['type']!s:.20}'"
            raise DataError(f"its audio comes from a source of type {kind}, which is not read; write it to a file and name that")


_LARGEST_KERNEL = 1 << 24
"""Values in the kernel of a resampler: 64 MB. Lhotse's have as many as the product of the rates over the square of what divides both."""


def _check_resamplers(recording: Recording) -> None:
    """Refuse transforms whose resampler has a kernel of gigabytes.

    Raises:
        DataError: there is one.
    """
    rate = recording.sampling_rate
    for transform in recording.transforms or ():
        values = transform["kwargs"] if isinstance(transform, dict) else vars(transform)
        pairs = [(values["source_sampling_rate"], values["target_sampling_rate"])] if "target_sampling_rate" in values else []
        pairs += [(round(rate * float(values["factor"])), rate)] if "factor" in values else []
        for source, target in pairs:
            for each in (source, target):
                check_rate(int(each), "a transform")
            if int(source) * int(target) > _LARGEST_KERNEL * math.gcd(int(source), int(target)) ** 2:
                raise DataError(
                    f"a transform resamples from {source} to {target} Hz by a kernel of gigabytes\n    -> give resampled recordings"
                )


def _checked(cut: Cut) -> Cut:
    """Return an utterance whose values Lhotse does not check.

    Raises:
        DataError: one of them cannot be.
    """
    for name, value in (("start", cut.start), ("duration", cut.duration)):
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0 <= value <= _LONGEST
            or (name == "duration" and not value)
        ):
            raise DataError(f"'{name}' must be a number of seconds, received {value!r:.60}")
    if not cut.duration:
        raise DataError("'duration' must be above 0 s")
    if isinstance(cut.sample_rate, bool) or not isinstance(cut.sample_rate, int):
        raise DataError(f"'sampling_rate' must be a whole number, received {cut.sample_rate!r:.60}")
    check_rate(cut.sample_rate, "its recording")
    if cut.num_samples > MOST_SAMPLES:
        raise DataError(f"has {cut.num_samples} samples; an utterance may have {MOST_SAMPLES}")
    for name in (cut.id, cut.speaker or ""):
        check_name(name)
    check_text(cut.text)
    if not isinstance(cut.custom, Mapping):
        raise DataError(f"'custom' must be a JSON object, received {cut.custom!r:.60}")
    return cut


_LONGEST = 1e9  # s; more would overflow


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
                for where, item, member in _shar_items(path) if is_folder(path) else _items(path):
                    try:
                        cuts[split] += self._utterances(item, member)
                    except DataError as error:
                        skipped.append(Skip(split, where, str(error)))
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

    def _utterances(self, item: Any, member: _TarMember | None) -> list[Cut]:
        """Return the utterances of a line in JSON or of a Lhotse cut, whose audio may lie in a tar file.

        Raises:
            DataError: it is none, or cannot be used.
        """
        values = parse_json(item) if isinstance(item, str) else item
        if isinstance(values, dict) and (cut := self._simple_cut(values)) is not None:
            return [_checked(cut)]
        if not isinstance(values, (dict, LhotseCut)):
            raise DataError(f"must be a JSON object, received {values!r:.60}")
        try:
            _check_sources(values if isinstance(values, dict) else values.to_dict())
            return [_checked(cut) for cut in self._cuts_of(deserialize_item(values) if isinstance(values, dict) else values, member)]
        except DataError:
            raise
        except Exception as error:  # Lhotse raises anything for values of other types
            raise DataError(f"is no cut of Lhotse's ({type(error).__name__}: {first_line(error, most=120)})") from error

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
        except (KeyError, ValueError, TypeError, AttributeError):
            return None  # Lhotse reports what is wrong with it

    def _cuts_of(self, cut: Any, member: _TarMember | None) -> Iterator[Cut]:
        """Make an utterance of each supervision of a Lhotse cut, whose audio may lie in a tar file."""
        if not isinstance(cut, MonoCut) or not cut.has_recording:
            raise DataError(f"{cut.id}: is a {type(cut).__name__} without a recording of its own; only cuts of one recording can be read")
        if not cut.supervisions:
            raise DataError(f"{cut.id}: has no supervision, so there is no text")
        for piece in cut.trim_to_supervisions(keep_overlapping=False) if len(cut.supervisions) > 1 else [cut]:
            text = clean_text(piece.supervisions[0].text or "")
            if not text:
                raise DataError(f"{cut.id}: its text is empty")
            recording, path = piece.recording, None
            source = recording.sources[0]
            if source.type == "file" and member is None:
                path = self._absolute(source.source)
                recording = fastcopy(recording, sources=[fastcopy(source, source=path)])
            is_simple = path is not None and is_plain_file("MonoCut", piece.channel, source.type, source.channels, recording.transforms)
            speaker = piece.supervisions[0].speaker
            yield Cut(
                str(piece.id),
                text,
                piece.duration,
                recording.sampling_rate,
                None if speaker is None else str(speaker),
                path,
                piece.start,
                piece.channel,
                None if is_simple else LhotseRecording(recording, member),
                piece.custom or {},
            )


def _shar_items(folder: Path) -> Iterator[tuple[str, MonoCut, _TarMember]]:
    """Read the cuts of a folder in Shar format with their places, and where their audio lies."""
    lists, tars = sorted(folder.glob("cuts.*.jsonl*")), sorted(folder.glob("recording.*.tar"))
    if not lists or len(lists) != len(tars):
        raise DataError(
            f"{folder}: holds {len(lists)} lists of cuts and {len(tars)} tar files of recordings\n"
            '    -> give a folder that CutSet.to_shar(..., {"recording": "flac"}) wrote'
        )
    for file, tar in zip(lists, tars, strict=True):
        recordings, members = _index(tar)
        for number, cut in enumerate(CutSet.from_file(file), start=1):
            recording = recordings.get(str(cut.id))
            if recording is None:
                raise DataError(f"{tar}: holds no audio of '{cut.id}', which {file.name} lists")
            yield f"{file}, cut {number}", fastcopy(cut, recording=recording), members[str(cut.id)]


_LARGEST_DESCRIPTION = 1 << 20  # bytes


def _index(tar: Path) -> tuple[dict[str, Recording], dict[str, _TarMember]]:
    """Read from a tar file the descriptions of its recordings, and where their encoded audio lies, by id."""
    recordings, members = {}, {}
    with tarfile.open(tar) as archive:
        for member in archive:
            name, _, kind = member.name.rpartition(".")
            if kind == "json":
                content = archive.extractfile(member)
                if content is None or member.size > _LARGEST_DESCRIPTION:
                    raise DataError(f"{tar}: '{member.name}' is no description of a recording")
                values = parse_json(content.read().decode())
                _check_sources(values)
                recordings[name] = Recording.from_dict(values)
            else:
                members[name] = _TarMember(str(tar), member.offset_data, member.size)
    return recordings, members
