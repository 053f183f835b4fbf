"""What a corpus is to the rest of the program: three lists of cuts, and a record of what was left out."""

from __future__ import annotations

import logging
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import soundfile
from lhotse import MonoCut, Recording
from lhotse.audio import AudioSource
from lhotse.audio.backend import LibsndfileBackend, set_current_audio_backend

from speechtrain.data.audio import AUDIO_SUFFIXES, Audio, from_samples, read_recording, samples_in
from speechtrain.errors import DataError

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

set_current_audio_backend(LibsndfileBackend())  # reads WAV, FLAC, MP3 and OGG; torchaudio's own would need torchcodec

_NOTHING: Mapping[str, Any] = {}


@dataclass(slots=True, eq=False)
class Cut:
    """An utterance: a recording, or a part of one, and what is said in it.

    As small as it can be, for corpora have hundreds of thousands; Lhotse's own has a supervision and a recording in it.

    Attributes:
        duration: s.
        sample_rate: of the recording, Hz.
        path: file of the recording; None: the corpus' own `read` makes the samples.
        start: s in the recording.
        channel: of the recording, counted from 0; None: the mean of all.
        recorded: samples of the whole recording; None: as many as the utterance has.
        recording: Lhotse's, where there is more to reading it than a file.
        custom: what else is known; `parent`, `words`, and what divides the error report.
    """

    id: str
    text: str
    duration: float
    sample_rate: int
    speaker: str | None = None
    path: str | None = None
    start: float = 0.0
    channel: int | None = None
    recorded: int | None = None
    recording: Recording | None = None
    custom: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)

    @property
    def num_samples(self) -> int:
        """At its own rate."""
        return self.samples_at(self.sample_rate)

    def samples_at(self, rate: int) -> int:
        """How many samples it has at a rate in Hz, the half one rounded up."""
        return samples_in(self.duration, rate)

    def as_lhotse(self) -> MonoCut:
        """As Lhotse reads it."""
        recording = self.recording
        if recording is None:
            samples = self.num_samples if self.recorded is None else self.recorded
            sources = [AudioSource("file", [0], self.path)]
            recording = Recording(self.id, sources, self.sample_rate, samples, samples / self.sample_rate)
        return MonoCut(self.id, self.start, self.duration, self.channel or 0, recording=recording)


def read_audio(cut: Cut, rate: int, name: str | None = None) -> Audio:
    """A cut's samples (N,) at `rate` Hz.

    Args:
        cut: with a recording.
        rate: Hz.
        name: of where it lies, for messages; None: its file.

    Raises:
        DataError: the file cannot be decoded, is empty, or holds NaN or infinite samples.
    """
    if cut.recording is None:
        assert cut.path is not None
        return read_recording(cut.path, rate, start=cut.start, duration=cut.duration, channel=cut.channel, name=name)
    name = name or cut.path or cut.recording.sources[0].source
    try:
        samples = cut.as_lhotse().load_audio()[0]
    except Exception as error:  # the decoder's exceptions have no common type
        if cut.path is not None and not Path(cut.path).is_file():
            raise DataError(f"no such file: {cut.path}") from None
        reason = str(error).strip().splitlines()
        raise DataError(f"{name}: cannot be read as audio ({reason[-1] if reason else type(error).__name__})") from error
    return from_samples(samples, cut.sample_rate, rate, name=name)


@dataclass(frozen=True)
class Skip:
    """An utterance that was left out.

    Attributes:
        split: train, val or test.
        where: file and line, or the utterance's id.
        reason: what was wrong, and what was received.
    """

    split: str
    where: str
    reason: str


@dataclass
class Corpus:
    """Cuts of the three splits; a split that does not exist is empty.

    Attributes:
        splits: `train`, `val`, `test`.
        skipped: what was found bad while reading the lists.
        read: gives a cut's samples (N,) at the rate asked for; raises `DataError` where that is impossible.
        target: gives the signal (T, C) that is wanted of a cut, as many frames as its features have; None: texts are wanted.
        target_size: C.
        normalized: some texts as the corpus has them and as they are trained on, such that were changed first.
    """

    splits: dict[str, list[Cut]]
    skipped: list[Skip] = field(default_factory=list)
    read: Callable[[Cut, int], Audio] = read_audio
    target: Callable[[Cut], Audio] | None = None
    target_size: int = 0
    normalized: list[tuple[str, str]] = field(default_factory=list)

    @property
    def from_files(self) -> bool:
        """Whether samples are those of the cuts' recordings, and nothing else is done to them."""
        return self.read is read_audio


class CorpusSource(Protocol):
    """What `data._target_` names: built from its keys, then asked once."""

    def load(self, limit: int | None) -> Corpus:
        """The corpus, with at most `limit` utterances a split."""
        ...


def make_cut(
    utt_id: str,
    path: Path | str | None,
    *,
    num_samples: int,
    sample_rate: int,
    text: str,
    speaker: str | None,
    custom: dict[str, Any] | None = None,
    start: float = 0.0,
    end: float | None = None,
) -> Cut:
    """A cut of one utterance: a whole file, or the part of it from `start` to `end` in seconds.

    Without a path it has no recording and the corpus' own `read` makes its samples.

    Raises:
        DataError: the part is not inside the file.
    """
    duration = num_samples / sample_rate
    cut = Cut(utt_id, text, duration, sample_rate, speaker, None if path is None else str(path), custom=custom or _NOTHING)
    if start == 0.0 and end is None:
        return cut
    last = duration if end is None else min(end, duration) if end <= duration + _SLACK else end
    if not 0 <= start < last <= duration:
        raise DataError(f"lies from {start:g} to {last:g} s, but {Path(path).name if path is not None else utt_id} lasts {duration:.3f} s")
    cut.start, cut.duration, cut.recorded = start, round(last - start, 8), num_samples
    return cut


_SLACK = 0.05  # s that a segment may end behind its recording: lists are rounded


def read_header(path: Path | BytesIO, sample_rate: int | None) -> tuple[int, int]:
    """Rate in Hz and number of samples of a file, or of what would be in one.

    Raises:
        DataError: it is no audio, holds nothing, or has another rate than `sample_rate`.
    """
    shown = path if isinstance(path, Path) else "its audio"
    if isinstance(path, Path):
        if not path.is_file():
            raise DataError(f"no such file: {path}")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes)")
    try:
        header = soundfile.info(str(path) if isinstance(path, Path) else path)
    except soundfile.SoundFileError as error:
        raise DataError(f"{shown} is not audio that can be read ({str(error).split(': ')[-1].strip()})") from None
    if header.frames <= 0:
        raise DataError(f"{shown} holds no samples")
    if sample_rate is not None and header.samplerate != sample_rate:
        raise DataError(f"{shown} is at {header.samplerate} Hz, but data.sample_rate is {sample_rate}")
    return header.samplerate, header.frames


def clean_text(text: str) -> str:
    """Composed Unicode (NFC), runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def report_skips(skipped: Iterable[Skip], on_bad: str) -> None:
    """Warn of what was left out, or refuse it.

    Raises:
        DataError: with `on_bad="error"` and anything skipped.
    """
    items = list(skipped)
    if not items:
        return
    shown = [f"  {item.where}: {item.reason} ({item.split})" for item in items[:10]]
    if len(items) > 10:
        shown.append(f"  ... and {len(items) - 10} more")
    text = "\n".join(shown)
    if on_bad == "error":
        raise DataError(
            f"{len(items)} bad utterances, and data.on_bad=error:\n{text}\n    -> mend them, or set data.on_bad=skip to go on without them"
        )
    log.warning("%d bad utterances left out (data.on_bad=skip):\n%s", len(items), text)


def seconds(cuts: list[Cut]) -> float:
    """Total duration."""
    return math.fsum(cut.duration for cut in cuts)


def audio_files(folder: Path) -> list[Path]:
    """All audio under a folder, in the order of their names; hidden ones are left out."""
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def keep(cuts: list[Cut], wanted: Callable[[Cut], bool]) -> list[Cut]:
    """The cuts that are wanted."""
    return [cut for cut in cuts if wanted(cut)]
