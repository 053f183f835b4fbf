"""Writes a corpus as `data=shar` reads it: a folder in Lhotse's Shar format for each split, by Lhotse's writers, and an index of all.

A recording that is an utterance is stored byte by byte as it is. Parts of recordings, and samples that come from no file, become FLAC:
of 16 bits where that holds them exactly or they come from MP3, OGG or Opus, else of 24.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
from lhotse import MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.shar.utils import to_shar_placeholder
from lhotse.shar.writers.cut import JsonlShardWriter
from lhotse.shar.writers.tar import TarWriter

from speechtrain.console import progress_bar
from speechtrain.data.audio import open_recording, read_part, read_recording, samples_in
from speechtrain.data.corpora.shar import INDEX, VERSION
from speechtrain.data.corpus import SPLITS, Corpus, Cut, Skip, report_skips
from speechtrain.errors import DataError
from speechtrain.files import make_folder, open_regular

_LOSSY = ("MP3", "OGG", "MPEG")
_FLAC_CHANNELS, _FLAC_RATE = 8, 192_000
LARGEST_FILE = (1 << 31) - 1
"""Bytes of a recording that is stored as it is."""


@dataclass
class Written:
    """What was written: utterances by split, tar files, bytes of them and of the index, and what was left out.

    Attributes:
        unused: what tar files hold besides, by its ending: how many, and the first.
        dropped: fields of utterances that JSON does not hold: in how many, and the first.
    """

    utterances: dict[str, int]
    shards: int = 0
    size: int = 0
    index_size: int = 0
    skipped: list[Skip] = field(default_factory=list)
    unused: dict[str, tuple[int, str]] = field(default_factory=dict)
    dropped: dict[str, tuple[int, str]] = field(default_factory=dict)


class _Encoded(NamedTuple):
    """An utterance's recording as it is stored: its content, the ending of its name, and what its header says."""

    content: bytes
    suffix: str
    rate: int
    samples: int
    channels: int


def write_shar(corpus: Corpus, folder: Path, shard_size: int, *, refuse_bad: bool) -> Written:
    """Write all utterances, each decoded once to see that it can be.

    Args:
        corpus: the utterances.
        folder: the folder for all files, which appears whole or not at all; it is empty or not there.
        shard_size: utterances in a tar file.
        refuse_bad: whether an utterance that cannot be read ends the writing, and is not left out.

    Raises:
        DataError: nothing is left for training, or something is bad and `refuse_bad`.
        OSError: the folder cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    written = Written(dict.fromkeys(SPLITS, 0))
    try:
        make_folder(temporary)
        with gzip.open(temporary / INDEX, "wt", encoding="utf-8") as index:
            write_line(index, {"shar_index": VERSION})
            for split in SPLITS:
                _SplitWriter(corpus, split, temporary, shard_size, index, written, refuse_bad=refuse_bad).write()
        if not written.utterances["train"]:
            report_skips(written.skipped, "skip")
            raise DataError("no utterance is left to train on\n    -> look at the warnings above")
        written.index_size = (temporary / INDEX).stat().st_size
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written


class _SplitWriter:
    """Writes the utterances of a split."""

    def __init__(
        self, corpus: Corpus, split: str, folder: Path, shard_size: int, index: IO[str], written: Written, *, refuse_bad: bool
    ) -> None:
        self._corpus = corpus
        self._split = split
        self._folder = folder
        self._index = index
        self._written = written
        self._refuse_bad = refuse_bad
        place = str(folder / split).replace("%", "%%")
        self._lists = JsonlShardWriter(f"{place}/cuts.%06d.jsonl.gz", shard_size)
        self._tars = TarWriter(f"{place}/recording.%06d.tar", shard_size)
        self._lines: list[dict[str, Any]] = []

    def write(self) -> None:
        """Write the tar files, Lhotse's lists and the lines of the index."""
        cuts = self._corpus.splits[self._split]
        if not len(cuts):
            return
        (self._folder / self._split).mkdir()
        with progress_bar(f"writing {self._split}", len(cuts)) as advance:
            for cut in cuts:
                try:
                    encoded = _encoded(self._corpus, cut)
                    self._add(replace(cut, custom=self._in_json(cut)), encoded)
                except DataError as error:
                    skip = Skip(self._split, cut.id, str(error))
                    if self._refuse_bad:
                        report_skips([skip], "error")
                    self._written.skipped.append(skip)
                advance(1)
        name = self._tars.fname
        self._tars.close()
        self._lists.close()
        self._finish_shard(name)

    def _in_json(self, cut: Cut) -> dict[str, Any]:
        """Return what is known of an utterance besides, without what JSON does not hold."""
        kept = {}
        for key, value in cut.custom.items():
            try:
                json.dumps({key: value})
            except (TypeError, ValueError, RecursionError):
                count, first = self._written.dropped.get(str(key), (0, f"a {type(value).__name__} in '{cut.id}'"))
                self._written.dropped[str(key)] = (count + 1, first)
            else:
                kept[key] = value
        return kept

    def _add(self, cut: Cut, encoded: _Encoded) -> None:
        previous = self._tars.fname
        self._tars.write(f"{cut.id}.{encoded.suffix}", io.BytesIO(encoded.content))
        if self._tars.fname != previous:
            self._finish_shard(previous)
        padded = -(-len(encoded.content) // 512) * 512
        offset = self._tars.tarstream.offset - padded
        self._lines.append(index_line(replace(cut, sample_rate=encoded.rate, channels=encoded.channels), offset, encoded.content))
        described = _lhotse_cut(cut, encoded)
        description = json.dumps(to_shar_placeholder(described.recording).to_dict()).encode()
        self._tars.write(f"{cut.id}.json", io.BytesIO(description), count=False)
        self._lists.write(described)
        self._written.utterances[self._split] += 1

    def _finish_shard(self, name: str | None) -> None:
        """Write the lines of a tar file that is closed."""
        if name is None:
            return
        size = Path(name).stat().st_size
        write_line(self._index, {"shard": f"{self._split}/{Path(name).name}", "split": self._split, "size": size})
        for line in self._lines:
            write_line(self._index, line)
        self._lines.clear()
        self._written.shards += 1
        self._written.size += size


def index_line(cut: Cut, offset: int, content: bytes) -> dict[str, Any]:
    """Return the line of an utterance whose recording lies at `offset` in a tar file."""
    line: dict[str, Any] = {"id": cut.id, "text": cut.text, "speaker": cut.speaker, "duration": cut.duration}
    line |= {"sample_rate": cut.sample_rate, "custom": cut.custom or None}
    if cut.channels > 1:
        line |= {"channel": cut.channel, "channels": cut.channels}
    place = {"offset": offset, "size": len(content), "crc32": zlib.crc32(content)}
    return {key: value for key, value in line.items() if value is not None} | place


def write_line(file: IO[str], value: Mapping[str, Any]) -> None:
    """Write a line of an index."""
    file.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def _encoded(corpus: Corpus, cut: Cut) -> _Encoded:
    """Return the recording of an utterance as it is stored.

    Raises:
        DataError: it cannot be read, or its id cannot be the name of a file in a tar file.
    """
    path = PurePosixPath(cut.id)
    if str(path) != cut.id or path.is_absolute() or ".." in path.parts or len(cut.id.encode()) > 1000:
        raise DataError(f"the id '{cut.id[:60]}' cannot be the path of a file in a tar file\n    -> rename it")
    if cut.path is None or cut.recording is not None or not corpus.from_files:
        samples = corpus.read(cut, cut.sample_rate)
        return _as_file(samples[None, :], cut.sample_rate, is_lossy=False)
    with open_recording(cut.path, cut.path) as file:
        is_whole = cut.start == 0 and file.frames == cut.num_samples and file.samplerate == cut.sample_rate
        channels, is_lossy = file.channels, file.format in _LOSSY
    if not is_whole:
        corpus.read(cut, cut.sample_rate)  # also tells where the recording ends too early
        chosen = range(channels) if cut.channel is None else (cut.channel,)
        return _as_file(np.stack([_part(cut, channel) for channel in chosen]), cut.sample_rate, is_lossy=is_lossy)
    with open_regular(Path(cut.path)) as stored:
        content = stored.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise DataError(f"{cut.path}: is larger than {LARGEST_FILE >> 20} MiB\n    -> divide it")
    read_recording(content, cut.sample_rate, duration=cut.duration, channel=cut.channel, name=cut.path)
    return _Encoded(content, Path(cut.path).suffix.lower().lstrip(".") or "audio", cut.sample_rate, cut.num_samples, channels)


def _part(cut: Cut, channel: int) -> npt.NDArray[np.float32]:
    """Read one channel (N,) of a part of a file."""
    assert cut.path is not None
    with open_recording(cut.path, cut.path) as file:
        rate = cut.sample_rate
        return read_part(file, samples_in(cut.start, rate), samples_in(cut.duration, rate), channel, cut.path)


def _as_file(samples: npt.NDArray[np.float32], rate: int, *, is_lossy: bool) -> _Encoded:
    """Encode samples (channels, N)."""
    channels, count = samples.shape
    stored, suffix = io.BytesIO(), "flac"
    loudest = float(np.abs(samples).max())
    in_16_bits = np.rint(samples.astype(np.float64) * (1 << 15))
    if channels > _FLAC_CHANNELS or rate > _FLAC_RATE or loudest > 1.0:
        suffix = "wav"
        soundfile.write(stored, samples.T, rate, format="WAV", subtype="FLOAT")
    elif is_lossy or np.array_equal(in_16_bits / (1 << 15), samples):
        soundfile.write(stored, in_16_bits.clip(-(1 << 15), (1 << 15) - 1).astype(np.int16).T, rate, format="FLAC", subtype="PCM_16")
    else:
        in_24_bits = np.rint(samples.astype(np.float64) * (1 << 23)).clip(-(1 << 23), (1 << 23) - 1).astype(np.int32)
        soundfile.write(stored, (in_24_bits << 8).T, rate, format="FLAC", subtype="PCM_24")
    return _Encoded(stored.getvalue(), suffix, rate, count, channels)


def _lhotse_cut(cut: Cut, encoded: _Encoded) -> MonoCut | MultiCut:
    """Return Lhotse's description of an utterance whose recording lies in the tar file."""
    duration, channels = encoded.samples / encoded.rate, list(range(encoded.channels))
    source = AudioSource("shar", channels, "")
    recording = Recording(cut.id, [source], encoded.rate, encoded.samples, duration, channel_ids=channels)
    chosen: int | list[int] = channels[0] if len(channels) == 1 else channels if cut.channel is None else cut.channel
    supervision = SupervisionSegment(cut.id, cut.id, 0.0, duration, channel=chosen, text=cut.text, speaker=cut.speaker)
    kind = MultiCut if isinstance(chosen, list) else MonoCut
    return kind(cut.id, 0.0, duration, chosen, supervisions=[supervision], recording=recording, custom=dict(cut.custom) or None)
