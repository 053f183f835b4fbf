"""Recordings that are cut off: of which formats the header says so, where libsndfile reads what is there without a word."""

from __future__ import annotations

import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Literal, NamedTuple

import soundfile

from speechtrain.data.audio import MISSING_SECONDS
from speechtrain.errors import DataError
from speechtrain.files import open_regular

_NO_LENGTH = 0x7FFF_0000  # bytes that the header of a WAV file states where they were not known
_OGG_PAGE = 27 + 255 + 255 * 255  # bytes of the largest page of an Ogg stream
_ALAC_PACKET = 4096  # samples, which cannot be decoded without the last byte


def check_whole(file: soundfile.SoundFile, source: Path | IO[bytes], name: str) -> None:
    """Check that an open file holds the samples that its header states, and that a stream of Ogg comes to its end.

    Libsndfile reads the rest of such a file without a word where the format is one of chunks (WAV, RF64, W64, AIFF, CAF, SVX), Ogg, AU,
    AVR, SPHERE, VOC, MATLAB, WVE or MPC 2000. What is missing in FLAC and MP3 is found when they are decoded. Headers of IRCAM, PAF and PVF
    state no length. What programs write that did not know the length, zero or about the greatest number, states nothing.

    Args:
        file: the open recording.
        source: its file, or its content.
        name: its name, for messages.

    Raises:
        DataError: it is cut off by more than 25 ms.
    """
    if not file.frames:
        return
    with open_regular(source) if isinstance(source, Path) else nullcontext(source) as content:
        size = content.seek(0, os.SEEK_END)
        if file.format == "OGG":
            if not _ends_its_stream(content, size):
                raise DataError(f"{name} is cut off: the end of its Ogg stream is missing\n    -> copy it again")
            return
        missing = _missing_samples(file, content, size)
    if missing > MISSING_SECONDS * file.samplerate:
        lasts = f"{(file.frames + missing) / file.samplerate:.3f} s, and {file.frames / file.samplerate:.3f} s are there"
        raise DataError(f"{name} is cut off: its header states {lasts}\n    -> copy it again")


def _missing_samples(file: soundfile.SoundFile, content: IO[bytes], size: int) -> int:
    """Return how many samples the header of an open file states beyond those that are there; 0 where it states nothing."""
    content.seek(0)
    frames = int(file.frames)
    if file.format in _CHUNKS:
        stated, place = _audio_chunk(content, size, _CHUNKS[file.format], "big" if file.endian == "BIG" else None)
    elif file.format == "AU":
        order: Literal["little", "big"] = "little" if content.read(4) == b"dns." else "big"
        place, stated = (int.from_bytes(content.read(4), order) for _ in range(2))
        stated = 0 if stated >= _NO_LENGTH else stated
    elif file.format == "AVR":
        stated = int.from_bytes(content.read(30)[26:], "big")
        return max(0, stated - frames) if stated < _NO_LENGTH else 0
    elif file.format == "NIST":
        count = re.search(rb"^sample_count -i ([0-9]{1,18})$", content.read(1024), re.MULTILINE)
        return max(0, int(count[1]) - frames) if count is not None else 0
    elif file.format == "VOC":
        stated, place = _voc_block(content)
    elif file.format in _LOGGED:
        counts = re.findall(_LOGGED[file.format], file.extra_info)
        return max(0, int(counts[-1]) - frames) if counts else 0
    else:
        return 0
    there = max(1, size - place)
    if file.subtype.startswith("ALAC") and stated > there:
        return max(_ALAC_PACKET, (stated - there) * frames // there)
    return max(0, stated - there) * frames // there


_LOGGED = {
    **dict.fromkeys(("MAT4", "MAT5"), r"Cols +: ([0-9]{1,18})\n"),
    "MPC2K": r"Frames +: ([0-9]{1,18})\n",
    "WVE": r"Data length ([0-9]{1,18}) should be",
}
"""Where libsndfile's log of a file has the number of samples that its header states, by the format."""


_VOC_HEADERS = {1: 2, 9: 12}
"""Bytes before the samples in the blocks of a VOC file that hold some, by the kind of the block."""


def _voc_block(content: IO[bytes]) -> tuple[int, int]:
    """Return how many bytes the first block of samples of a VOC file states, 0 if there is none, and where they begin."""
    content.seek(20)
    place = int.from_bytes(content.read(2), "little")
    while content.seek(place) and (kind := content.read(1)) not in (b"", b"\0"):
        stated = int.from_bytes(content.read(3), "little")
        if (header := _VOC_HEADERS.get(kind[0])) is not None:
            return stated - header, place + 4 + header
        place += 4 + stated
    return 0, 0


def _ends_its_stream(content: IO[bytes], size: int) -> bool:
    """Return whether the last page of an Ogg file is whole and says that the stream ends with it (RFC 3533, section 6)."""
    content.seek(max(0, size - 2 * _OGG_PAGE))
    end = content.read()
    last = end.rfind(b"OggS\0")
    if last < 0:  # other things stand behind the audio
        return True
    page = end[last:]
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return bool(page[5:6] and page[5] & 4) and len(page) >= 27 + len(lengths) + sum(lengths) and len(page) > 26 and len(lengths) == page[26]


class _Chunks(NamedTuple):
    """Describes how a format divides its files into chunks, each of which begins with its kind and its size.

    Attributes:
        first: where the first chunk begins, in bytes.
        kind: bytes of a kind.
        size: bytes of a size.
        order: order of the bytes of a size.
        multiple: bytes of which chunks begin at a multiple.
        audio: beginning of the kind that holds the audio.
        counts_header: whether a size counts kind and size themselves.
    """

    first: int
    kind: int
    size: int
    order: Literal["little", "big"]
    multiple: int
    audio: bytes
    counts_header: bool = False


_RIFF = _Chunks(12, 4, 4, "little", 2, b"data")


_CHUNKS = {
    **dict.fromkeys(("WAV", "WAVEX", "RF64"), _RIFF),
    "AIFF": _Chunks(12, 4, 4, "big", 2, b"SSND"),
    "SVX": _Chunks(12, 4, 4, "big", 2, b"BODY"),
    "CAF": _Chunks(8, 4, 8, "big", 1, b"data"),
    "W64": _Chunks(40, 16, 8, "little", 8, b"data", counts_header=True),
}


def _audio_chunk(content: IO[bytes], size: int, form: _Chunks, order: Literal["big"] | None) -> tuple[int, int]:
    """Return how many bytes a file of chunks states for its audio, 0 if it states nothing, and where these begin.

    Args:
        content: the file.
        size: its size in bytes.
        form: how it is divided.
        order: order of the bytes, as in RIFX, where it is not that of the format.
    """
    place, header, stated_by_ds64 = form.first, form.kind + form.size, 0
    while content.seek(place) + header <= size:
        kind, stated = content.read(form.kind), int.from_bytes(content.read(form.size), order or form.order)
        length = stated - header if form.counts_header else stated
        if kind == b"ds64":  # of RF64, with the sizes that do not fit into 4 bytes
            stated_by_ds64 = int.from_bytes(content.read(16)[8:], "little")
        if kind.startswith(form.audio):
            if stated == 0xFFFFFFFF and stated_by_ds64:
                length = stated = stated_by_ds64 if stated_by_ds64 < 1 << 62 else 0
            elif stated >= _NO_LENGTH << 8 * (form.size - 4):
                length = 0
            return length, place + header
        place += -(-(header + max(0, length)) // form.multiple) * form.multiple
    return 0, size
