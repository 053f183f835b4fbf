"""What a corpus is to the rest of the program: utterances in three splits, and a record of what was left out."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from speechtrain.data.audio import AUDIO_SUFFIXES, MOST_SAMPLES, RATES, Audio, open_recording, read_recording, samples_in
from speechtrain.data.headers import Header, plain_header
from speechtrain.data.truncation import check_whole
from speechtrain.errors import DataError, printable, shortened
from speechtrain.files import is_file, is_folder

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

NO_CUSTOM: Mapping[str, Any] = {}  # shared by all utterances without any
_END_TOLERANCE = 0.05  # s that a segment may end behind its recording: lists are rounded


class OtherRecording(Protocol):
    """A recording that is read in another way than by opening a file."""

    def read(self, cut: Cut, rate: int) -> Audio:
        """Read the samples (N,) of an utterance at `rate` Hz.

        Raises:
            DataError: it cannot be read, is empty, or holds NaN or infinite samples.
        """
        ...


@dataclass(slots=True, eq=False)
class Cut:
    """An utterance: a recording or a part of one, and what is said in it.

    It is as small as possible, for corpora have hundreds of thousands; Lhotse's own holds a supervision and a recording.

    Attributes:
        duration: duration, s.
        sample_rate: sample rate of the recording, Hz.
        path: file of the recording; None: the corpus' own `read`, or `recording`, gives the samples.
        start: start in the recording, s.
        channel: channel of the recording, counted from 0; None: the mean of all.
        recording: reads the samples where that takes more than opening a file.
        custom: what else is known: `parent`, `words`, and keys that the error report is divided by.
        channels: number of channels of the recording.
    """

    id: str
    text: str
    duration: float
    sample_rate: int
    speaker: str | None = None
    path: str | None = None
    start: float = 0.0
    channel: int | None = None
    recording: OtherRecording | None = None
    custom: Mapping[str, Any] = field(default_factory=lambda: NO_CUSTOM)
    channels: int = 1

    @property
    def num_samples(self) -> int:
        """Return the number of samples at the recording's own rate."""
        return self.samples_at(self.sample_rate)

    def samples_at(self, rate: int) -> int:
        """Return the number of samples at a rate in Hz, halves rounded up."""
        return samples_in(self.duration, rate)


def read_audio(cut: Cut, rate: int) -> Audio:
    """Read the samples (N,) of an utterance with a recording, at `rate` Hz.

    Raises:
        DataError: the recording cannot be read, is empty, or holds NaN or infinite samples.
    """
    if cut.recording is not None:
        return cut.recording.read(cut, rate)
    assert cut.path is not None
    return read_recording(cut.path, rate, start=cut.start, duration=cut.duration, channel=cut.channel)


@dataclass(frozen=True)
class Skip:
    """An utterance that was left out.

    Attributes:
        split: train, val or test.
        where: file and line, or the utterance's id.
        reason: what was wrong, and what was received.
        cut: the utterance, where nothing is wrong with it but that its text is empty.
        is_bad: whether something is wrong with it; else it was left out because limits of the config ask for it.
    """

    split: str
    where: str
    reason: str
    cut: Cut | None = None
    is_bad: bool = True

    @classmethod
    def of(cls, split: str, where: str, error: DataError) -> Skip:
        """Return the record of an utterance that cannot be used because of an error."""
        return cls(split, where, str(error), error.cut if isinstance(error, NoTextError) else None)


class NoTextError(DataError):
    """Names an utterance in which nothing is said; `data.empty_texts` says what becomes of it."""

    def __init__(self, what: str, cut: Cut) -> None:
        super().__init__(f"{what} is empty; data.empty_texts=evaluate keeps it in val and test")
        self.cut = cut


@dataclass
class Corpus:
    """Utterances of the three splits.

    Attributes:
        splits: utterances of `train`, `val` and `test`; empty where there is no such split.
        skipped: utterances that were left out because the lists or headers show that they are bad.
        read: reads the samples (N,) of an utterance at a rate in Hz; raises `DataError` where that is impossible.
        prefetch: starts to fetch the utterances that a reader (any hashable object) asks for next; None: the audio is local.
        target: reads the target signal (T, C) of an utterance, which has as many frames as its features; None: the targets are texts.
        target_size: number of values C per frame of the target signal.
        normalized: example texts as the corpus has them and as they are trained on, those that differ first.
    """

    splits: dict[str, Sequence[Cut]]
    skipped: list[Skip] = field(default_factory=list)
    read: Callable[[Cut, int], Audio] = read_audio
    prefetch: Callable[[Sequence[Cut], object], None] | None = None
    target: Callable[[Cut], Audio] | None = None
    target_size: int = 0
    normalized: list[tuple[str, str]] = field(default_factory=list)

    @property
    def from_files(self) -> bool:
        """Return whether samples are those of the utterances' recordings, unchanged."""
        return self.read is read_audio


class CorpusSource(Protocol):
    """What `data._target_` names: built with the keys of `data`, then loaded once."""

    def load(self, limit: int | None) -> Corpus:
        """List the utterances of the corpus, at most `limit` of each split; None: all."""
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
    channel: int | None = None,
    channels: int = 1,
) -> Cut:
    """Make an utterance of a whole recording, or of the part of it from `start` to `end` in seconds.

    Args:
        utt_id: id of the utterance.
        path: file of the recording; None: the corpus' own `read` gives the samples.
        num_samples: number of samples of the whole recording.
        sample_rate: sample rate of the recording, Hz.
        text: what is said.
        speaker: who says it; None: not known.
        custom: what else is known, see `Cut`.
        start: start in the recording, s.
        end: end in the recording, s; None: the end of the recording.
        channel: channel of the recording, counted from 0; None: not said.
        channels: number of channels of the recording.

    Raises:
        DataError: the part is not inside the recording, or has more than `MOST_SAMPLES`; a name or the text cannot be written down.
    """
    for name in (utt_id, speaker or ""):
        check_name(name)
    check_text(text)
    if num_samples < 1:
        raise DataError("holds no samples")
    if num_samples > MOST_SAMPLES and end is None and not start:
        raise DataError(f"has {num_samples} samples; an utterance may have {MOST_SAMPLES}")
    duration = num_samples / sample_rate
    place = None if path is None else str(path)
    cut = Cut(utt_id, text, duration, sample_rate, speaker, place, 0.0, channel, custom=custom or NO_CUSTOM, channels=channels)
    if start == 0.0 and end is None:
        return cut
    last = duration if end is None else min(end, duration) if end <= duration + _END_TOLERANCE else end
    if not 0 <= start < last <= duration:
        raise DataError(f"lies from {start:g} to {last:g} s, but {Path(path).name if path is not None else utt_id} lasts {duration:.3f} s")
    cut.start, cut.duration = start, round(last - start, 8)
    if cut.num_samples > MOST_SAMPLES:
        raise DataError(f"has {cut.num_samples} samples; an utterance may have {MOST_SAMPLES}")
    return cut


def check_name(name: str) -> None:
    """Check that the name of an utterance or of a speaker can stand in a line of a file in UTF-8.

    Raises:
        DataError: it holds line ends or other control characters, or comes from the name of a file that is not UTF-8.
    """
    if not name.isprintable() and any(unicodedata.category(char) in _NOT_IN_NAMES for char in name):
        raise DataError(f"the name {name[:60]!r} is not UTF-8, or holds line ends or control characters\n    -> rename it")


def check_text(text: str) -> None:
    """Check that what is said can stand in a file, and its characters in the vocabulary of a stored model.

    Raises:
        DataError: it is not UTF-8, or holds a zero byte.
    """
    if text != printable(text) or "\0" in text:
        raise DataError(f"its text {text[:60]!r} is not UTF-8, or holds a zero byte")


_NOT_IN_NAMES = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, halves of surrogate pairs, and separators of lines and paragraphs."""


def read_header(path: Path | BytesIO, sample_rate: int | None) -> Header:
    """Read the header of a file, or of the encoded audio that one would hold.

    Args:
        path: the file, or its content.
        sample_rate: rate in Hz that it must have; None: any.

    Raises:
        DataError: it is not audio, holds no samples, is cut off, or has another rate.
    """
    header = plain_header(path) if isinstance(path, Path) else None
    if header is not None and RATES[0] <= header.rate <= RATES[1] and sample_rate in (None, header.rate):
        return header
    name = str(path) if isinstance(path, Path) else "its audio"
    with open_recording(path, name) as file:
        header = Header(file.samplerate, file.frames, file.channels)
        check_whole(file, path, name)
    if header.samples <= 0:
        raise DataError(f"{name} holds no samples")
    if sample_rate is not None and header.rate != sample_rate:
        raise DataError(f"{name} is at {header.rate} Hz, but data.sample_rate is {sample_rate}")
    return header


def clean_text(text: str) -> str:
    """Compose a text's characters (Unicode NFC), and replace runs of white space by one space."""
    if text.isascii() and text.isprintable() and "  " not in text and text == text.strip():
        return text  # as most are
    return " ".join(unicodedata.normalize("NFC", text).split())


def report_skips(skipped: Iterable[Skip], on_bad: str) -> None:
    """Warn of what was left out, or refuse it.

    Raises:
        DataError: with `on_bad="error"` and anything skipped.
    """
    items = list(skipped)
    if not items:
        return
    lines = [shortened(f"  {item.where}: {item.reason} ({item.split})") for item in items[:10]]
    if len(items) > 10:
        lines.append(f"  ... and {len(items) - 10} more")
    text = printable("\n".join(lines))
    if on_bad == "error":
        raise DataError(
            f"{len(items)} bad utterances, and data.on_bad=error:\n{text}\n    -> mend them, or set data.on_bad=skip to go on without them"
        )
    log.warning("%d bad utterances left out (data.on_bad=skip):\n%s", len(items), text)


def audio_files(folder: Path, suffixes: Sequence[str] = AUDIO_SUFFIXES) -> list[Path]:
    """List all audio files under a folder, sorted by path, without hidden ones.

    Args:
        folder: the folder.
        suffixes: endings of the files that count, in small letters.

    Raises:
        DataError: there is no such folder.
    """
    if not is_folder(folder):
        raise DataError(f"no such folder: {folder}")
    try:
        paths = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes and is_file(path)]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}: {error.filename})") from None
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))
