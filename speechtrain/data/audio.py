"""Recordings as samples: the one place where audio is decoded, mixed to one channel and brought to another rate.

Training, evaluation, alignment, transcription, the HTTP service and Python all read here, so that they compute on the same samples.
The resampler is soxr at its quality "HQ": what it gives does not depend on the size of the blocks that it is fed with.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, ClassVar

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from speechtrain.data.mp3 import with_length
from speechtrain.errors import DataError
from speechtrain.files import open_regular, regular_size

Audio = npt.NDArray[np.float32]

Source = str | Path | bytes | bytearray | IO[bytes]
"""A file's name, the content of a file, or an open one."""

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3", ".opus", ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64", ".sph")
"""Endings of the files in a folder that count as recordings; libsndfile reads more, when a file is named."""
UNREAD_SUFFIXES = (".m4a", ".mp4", ".aac", ".webm", ".mka", ".wma", ".amr", ".3gp")
"""Endings of recordings that libsndfile does not read; where a folder holds some, they are named."""

MIXED = "{name} has {channels} channels, whose mean is heard; data.channel=0 takes the first"
"""Message for a recording with several channels."""

RATES = (1_000, 768_000)
"""Lowest and highest rate in Hz of a recording: what converters and formats have; another one comes from a damaged header."""
MOST_SAMPLES = 1 << 28
"""Samples of one channel that are held at once: 4.6 h at 16 kHz, 93 minutes at 48 kHz. Longer recordings are read in blocks or in parts."""
_MOST_BYTES = 1 << 31  # of a recording that comes through a pipe, which is held as it comes
_BLOCK_VALUES = 1 << 22  # samples of all channels that are decoded at once: 16 MB
_LOUDEST = 100.0  # of samples in floating point, with which spectra at any rate stay within half precision (data/features)
_MP3_MEMORY = 16 * 1152  # samples to decode before a part: a frame of MP3 may hold bits of the next ones
MISSING_SECONDS = 0.025  # a recording may be this much shorter than its header or a corpus says, because listed times are rounded


def samples_in(seconds: float, rate: int) -> int:
    """Return the number of samples in `seconds` at a rate in Hz, halves rounded up."""
    return math.floor(round(seconds * rate, 8) + 0.5)


def read_recording(
    source: Source,
    rate: int,
    *,
    start: float = 0.0,
    duration: float | None = None,
    channel: int | None = None,
    name: str | None = None,
) -> Audio:
    """Return the samples (N,) of a recording, or of a part of it, at `rate` Hz.

    Args:
        source: a file's name, the content of one, or an open one.
        rate: Hz of the result.
        start: start of the part, s; the part is cut before it is resampled.
        duration: duration of the part, s; None: to the end.
        channel: counted from 0, of recordings that have several; None: the mean of all channels.
        name: name of the source, for messages; None: the file's.

    Raises:
        DataError: the source cannot be decoded, is empty, ends before the part does, or holds NaN or infinite samples.
    """
    name = name or name_of(source)
    with open_recording(source, name) as file:
        native = file.samplerate
        expected = None if duration is None else samples_in(duration, native)
        samples = read_part(file, samples_in(start, native), expected, channel, name)
    if expected is not None and len(samples) < expected:
        missing = expected - len(samples)
        if missing > math.ceil(MISSING_SECONDS * native):
            raise DataError(f"{name}: ends at {start + len(samples) / native:.3f} s, before {start + expected / native:.3f} s")
        samples = np.pad(samples, (0, missing), mode="reflect")
    return resample(samples, native, rate, name=name)


def read_part(file: soundfile.SoundFile, start: int, count: int | None, channel: int | None, name: str) -> Audio:
    """Return the samples (N,) of a part of an open recording at its own rate; fewer than are asked for at its end.

    Args:
        file: the recording.
        start: first sample of the part.
        count: number of samples, N; None: to the end.
        channel: counted from 0, of recordings that have several; None: the mean of all channels.
        name: name of the recording, for messages.

    Raises:
        DataError: the part cannot be decoded, has more than `MOST_SAMPLES`, none, or some that are NaN or infinite.
    """
    blocks: list[Audio] = []
    left = MOST_SAMPLES + 1 if count is None else min(count, MOST_SAMPLES + 1)
    try:
        if start:
            before = max(0, start - (_MP3_MEMORY if file.format == "MP3" else 0))
            file.seek(before)
            if before < start:
                file.read(start - before)
        while left > 0 and len(block := file.read(min(left, _block_frames(file)), dtype="float32", always_2d=True)):
            blocks.append(_one_channel(block, channel, name))
            left -= len(block)
    except (soundfile.SoundFileError, ValueError, OverflowError) as error:
        raise _unreadable(name, error) from error
    if sum(map(len, blocks)) > MOST_SAMPLES:
        raise DataError(f"{name}: is longer than the {MOST_SAMPLES} samples that are read at once\n    -> divide it")
    if not blocks:
        raise DataError(f"{name}: holds no samples")
    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    _check_finite(samples, file.samplerate, name)
    return samples


def from_samples(values: npt.ArrayLike, native: int, rate: int, *, channel: int | None = None, name: str = "the audio") -> Audio:
    """Return the samples (N,) at `rate` Hz of samples (N,) or (N, channels) at `native` Hz, by the rules of `read_recording`.

    Raises:
        DataError: the values are no numbers, have another shape, are none, or are NaN or infinite.
    """
    try:
        block = np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}: is no array of numbers ({error})\n    -> give samples between -1 and 1") from None
    if block.ndim not in (1, 2):
        raise DataError(f"{name}: has the shape {block.shape}\n    -> give (samples,) or (samples, channels)")
    samples = _one_channel(block if block.ndim == 2 else block[:, None], channel, name)
    _check_finite(samples, native, name)
    return resample(samples, native, rate, name=name)


def resample(samples: Audio, native: int, rate: int, *, name: str = "the audio") -> Audio:
    """Return the samples (N,) at `native` Hz as samples at `rate` Hz; `name` is the recording's, for messages.

    Raises:
        DataError: one of the rates is outside `RATES`, or the result has more than `MOST_SAMPLES`.
    """
    if native == rate:
        return np.ascontiguousarray(samples)
    for each in (native, rate):
        check_rate(each, name)
    if len(samples) * rate > MOST_SAMPLES * native:
        raise DataError(f"{name}: has more than {MOST_SAMPLES} samples at {rate} Hz\n    -> divide it")
    resampled: Audio = soxr.resample(np.ascontiguousarray(samples), native, rate)
    return resampled


class RecordingReader:
    """Reads a recording or a stream in blocks, in constant memory; all blocks together are what `read_recording` gives.

    Args:
        source: a file's name, the content of one, or a stream of one.
        rate: Hz of the blocks.
        raw_rate: Hz of a stream of 16-bit samples of one channel without a header, little-endian; None: the source has a header.
        longest: s that the recording may last, whatever its header says; None: any time.
        channel: see `read_recording`.

    Attributes:
        name: name of the source, for messages.
        channels: number of channels of the source.
        duration: duration of the recording, s; None: unknown before the end.

    Raises:
        DataError: the source cannot be decoded, or is longer than it may be.
    """

    def __init__(
        self, source: Source, rate: int, raw_rate: int | None = None, *, longest: float | None = None, channel: int | None = None
    ) -> None:
        self.name = name_of(source)
        self.rate = rate
        self.longest = longest
        self.channel = channel
        self.channels = 1
        self.duration: float | None = None
        self._stream: IO[bytes] | None = None
        self._file: soundfile.SoundFile | None = None
        if raw_rate is not None:
            self._native = raw_rate
            assert not isinstance(source, (str, Path, bytes, bytearray))
            self._stream = source
        else:
            # pipes are read whole, for libsndfile seeks
            whole = source if isinstance(source, (str, Path, bytes, bytearray)) else source.read(_MOST_BYTES)
            if isinstance(whole, bytes) and len(whole) == _MOST_BYTES:
                raise DataError(f"{self.name}: is larger than {_MOST_BYTES >> 20} MiB\n    -> give it as a file")
            self._file = open_recording(whole, self.name)
            self._native = self._file.samplerate
            self.channels = self._file.channels
            self.duration = self._file.frames / self._native if self._file.frames > 0 else None
        self._check_length(self.duration or 0.0)

    def blocks(self, seconds: float = 10.0) -> Iterator[Audio]:
        """Yield samples (N,) in blocks of about `seconds` seconds.

        Raises:
            DataError: the source is damaged, empty, or holds NaN or infinite samples.
        """
        resampler = None
        if self._native != self.rate:
            for each in (self._native, self.rate):
                check_rate(each, self.name)
            resampler = soxr.ResampleStream(self._native, self.rate, 1, dtype="float32")
        total = 0
        for block in self._native_blocks(max(1, round(seconds * self._native))):
            _check_finite(block, self._native, self.name, begin=total / self._native)
            total += len(block)
            self._check_length(total / self._native)
            resampled = resampler.resample_chunk(block) if resampler is not None else block
            if len(resampled):
                yield resampled
        if not total:
            raise DataError(f"{self.name}: holds no samples")
        if resampler is not None and len(rest := resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)):
            yield rest

    def _check_length(self, seconds: float) -> None:
        if self.longest is not None and seconds > self.longest:
            raise DataError(f"{self.name} lasts {seconds:.0f} s; {self.longest:g} s are allowed")

    def _native_blocks(self, count: int) -> Iterator[Audio]:
        """Yield blocks (N,) of at most `count` samples at the source's own rate."""
        if self._file is None:
            assert self._stream is not None
            odd = b""
            while data := self._stream.read(2 * count):
                data = odd + data
                odd = data[len(data) - len(data) % 2 :]
                yield np.frombuffer(data[: len(data) - len(odd)], dtype="<i2").astype(np.float32) / np.float32(32768)
            return
        with self._file as file:
            while True:
                try:
                    block = file.read(min(count, _block_frames(file)), dtype="float32", always_2d=True)
                except soundfile.SoundFileError as error:
                    raise _unreadable(self.name, error) from error
                if not len(block):
                    return
                yield _one_channel(block, self.channel, self.name)


class LiveSamples:
    """Makes samples of the bytes of a live signal, as they come; what they are does not depend on how the bytes are divided.

    Args:
        native: rate of the signal, Hz.
        rate: rate of the samples, Hz.
        encoding: `pcm16` or `float32`, little-endian, of one channel.
        name: name of the signal, for messages.

    Raises:
        DataError: the rate is one that recordings do not have.
    """

    ENCODINGS: ClassVar[dict[str, str]] = {"pcm16": "<i2", "float32": "<f4"}

    def __init__(self, native: int, rate: int, encoding: str, name: str = "the signal") -> None:
        check_rate(native, name)
        self.name = name
        self.native = native
        self.received = 0
        """Samples that have come, at the signal's own rate."""
        self._type = np.dtype(self.ENCODINGS[encoding])
        self._odd = b""
        self._resampler = None if native == rate else soxr.ResampleStream(native, rate, 1, dtype="float32")

    def push(self, data: bytes) -> Audio:
        """Return the samples (N,) that some bytes complete.

        Raises:
            DataError: some are NaN, infinite or far beyond full scale.
        """
        data = self._odd + data
        whole = len(data) - len(data) % self._type.itemsize
        self._odd = data[whole:]
        values = np.frombuffer(data[:whole], dtype=self._type)
        samples: Audio = values.astype(np.float32)
        if self._type.kind == "i":
            samples /= np.float32(32768)
        _check_finite(samples, self.native, self.name, begin=self.received / self.native)
        self.received += len(samples)
        return samples if self._resampler is None else self._resampler.resample_chunk(samples)

    def finish(self) -> Audio:
        """Return the samples (N,) that are still missing at the end of the signal.

        Raises:
            DataError: the signal ends within a sample.
        """
        if self._odd:
            raise DataError(f"{self.name}: ends within a sample of {self._type.itemsize} bytes")
        nothing = np.zeros(0, dtype=np.float32)
        return nothing if self._resampler is None else self._resampler.resample_chunk(nothing, last=True)


def name_of(source: Source) -> str:
    """Return the name of a source of audio for messages."""
    if isinstance(source, (str, Path)):
        return str(source)
    return "the standard input" if getattr(source, "name", None) == "<stdin>" else "the audio"


class _Recording(soundfile.SoundFile):  # type: ignore[misc] # soundfile has no types
    """Opens a file of audio so that MP3 is decoded without gaps.

    Behind each reading soundfile seeks the place where it is, if it can; the decoder of MP3 then forgets bits of the next frames that it
    has read, and the next block begins with noise.
    """

    def seekable(self) -> bool:
        """Return whether soundfile may seek on its own account."""
        return self.format != "MP3" and bool(super().seekable())


def open_recording(source: Source, name: str) -> soundfile.SoundFile:
    """Open a file of audio, or the content of one, for reading.

    Raises:
        DataError: there is no such file, it is no audio, or has a rate outside `RATES`.
    """
    if isinstance(source, (str, Path)):
        check_file(Path(source))
    opened = (
        os.fsencode(source) if isinstance(source, (str, Path)) else io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else source
    )
    try:
        file = _Recording(opened)
        if file.format == "MP3" and (counted := _counted(opened, name)) is not None:
            file.close()
            file = _Recording(io.BytesIO(counted))
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(name, error) from None
    try:
        check_rate(file.samplerate, name)
    except DataError:
        file.close()
        raise
    return file


def _counted(opened: bytes | IO[bytes], name: str) -> bytes | None:
    """Return the content of an MP3 file with a header of the right length; None: it has one."""
    with open_regular(Path(os.fsdecode(opened))) if isinstance(opened, bytes) else nullcontext(opened) as file:
        place = file.tell()
        counted = with_length(file, name)
        file.seek(place)
    return counted


def check_file(path: Path) -> None:
    """Check that a regular file that is not empty has a name.

    Raises:
        DataError: it is none.
    """
    try:
        size = regular_size(path)
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if size == 0:
        raise DataError(f"{path} is empty (0 bytes)")


def _block_frames(file: soundfile.SoundFile) -> int:
    return max(1, _BLOCK_VALUES // int(file.channels))


def _unreadable(name: str, error: Exception) -> DataError:
    reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return DataError(
        f"{name}: cannot be read as audio ({reason.rstrip('.')}); WAV, FLAC, OGG, Opus, MP3, AIFF, AU, CAF and SPH can"
        f"\n    -> ffmpeg -i FILE FILE.flac converts others"
    )


def _one_channel(block: Audio, channel: int | None, name: str) -> Audio:
    """Return the samples (N,) of a block (N, channels)."""
    if not block.size:
        raise DataError(f"{name}: holds no samples")
    channels = block.shape[1]
    if channels == 1:
        return np.ascontiguousarray(block[:, 0])
    if channel is not None and not 0 <= channel < channels:
        raise DataError(f"{name}: has {channels} channels, and channel {channel}, counted from 0, is asked for")
    if channel is None:
        mean: Audio = block.mean(axis=1)
        return mean
    return np.ascontiguousarray(block[:, channel])


def _check_finite(samples: Audio, rate: int, name: str, *, begin: float = 0.0) -> None:
    finite = np.isfinite(samples)
    if not finite.all():
        first = begin + int(np.argmin(finite)) / rate
        raise DataError(f"{name}: holds {int((~finite).sum())} samples that are NaN or infinite, the first at {first:.3f} s")
    loudest = float(np.max(np.abs(samples), initial=0.0))
    if loudest > _LOUDEST:
        raise DataError(f"{name}: holds samples up to {loudest:g}, and full scale is 1\n    -> scale them to -1 ... 1")


def check_rate(rate: int, name: str) -> None:
    """Check that a recording's rate is one that recordings have.

    Raises:
        DataError: it is outside `RATES`.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{name}: is at {rate} Hz; recordings from {RATES[0]} to {RATES[1]} Hz can be read")
