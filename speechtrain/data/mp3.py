"""MP3 files whose header does not say how long they are, or says it wrongly.

The decoder takes the length from a frame of side information at the beginning, Xing's, or else reckons with the bit rate of the first
frame, and stops there: a file of variable bit rate without that frame, or two files in one, would lose its end.
The layout of frames is that of ISO/IEC 11172-3 and 13818-3, version 2.5 and the frame of Xing's are as LAME writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

from speechtrain.errors import DataError

_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""Hz by the number of MPEG's version (3: 1, 2: 2, 0: 2.5) and of the rate."""
_KILOBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KILOBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
"""Bit rates of layer III in version 1 and in the others, by their number."""
_TAG_BYTES = 1024  # that may follow the last frame: what else is known of a recording, never a second one
_FIRST_FRAME = 4096  # bytes in which it and its header fit


class _Frame(NamedTuple):
    """Describes a frame of layer III by its first four bytes.

    Attributes:
        size: bytes.
        version: number of MPEG's version.
        rate: Hz.
        mono: whether it has one channel.
    """

    size: int
    version: int
    rate: int
    mono: bool

    @property
    def tag(self) -> int:
        """Return the place of Xing's letters in it, behind the side information of layer III."""
        if self.version == 3:
            return 4 + (17 if self.mono else 32)
        return 4 + (9 if self.mono else 17)

    def like(self, other: _Frame) -> bool:
        """Return whether both can stand in one recording."""
        return self[1:] == other[1:]


def with_length(file: IO[bytes], name: str) -> bytes | None:
    """Return an MP3 file's frames behind a header that says how many there are; None: the file's own header is right.

    Args:
        file: the file, open at any place.
        name: its name, for messages.

    Raises:
        DataError: its rate or its number of channels changes.
    """
    file.seek(0)
    if _header_is_right(file):
        return None
    file.seek(0)
    content = file.read()
    begin = _behind_tag(content, 0)
    places = list(_frames(content, begin, name))
    if not places:
        return None  # layers I and II, or free bit rates
    first = places[0][1]
    kept = [content[place : place + frame.size] for place, frame in places if not _is_information(content, place, frame)]
    return b"".join([_header(content[places[0][0] : places[0][0] + 4], first, len(kept)), *kept])


def _header_is_right(file: IO[bytes]) -> bool:
    """Return whether the first frame is one of Xing's that states as many bytes as follow, or more."""
    place = 0
    while (start := file.read(10)).startswith(b"ID3") and len(start) == 10:
        place += _tag_size(start)
        file.seek(place)
    begin = start + file.read(_FIRST_FRAME)
    frame = _frame_at(begin, 0)
    if frame is None or begin[frame.tag : frame.tag + 4] not in (b"Xing", b"Info"):
        return False
    flags, bytes_stated = (int.from_bytes(begin[frame.tag + at : frame.tag + at + 4], "big") for at in (4, 12))
    return flags & 3 == 3 and file.seek(0, 2) - place - bytes_stated <= _TAG_BYTES


def _frames(content: bytes, begin: int, name: str) -> Iterator[tuple[int, _Frame]]:
    """Yield the place of each whole frame; what lies between frames is passed over."""
    first: _Frame | None = None
    place = begin
    while 0 <= place <= len(content) - 4:
        frame = _frame_at(content, place)
        if frame is not None and (first is None or not frame.like(first)):
            following = _frame_at(content, place + frame.size)
            if following is None or not following.like(frame):
                frame = None  # two bytes that look like a frame's first
            elif first is not None:
                raise DataError(
                    f"{name}: goes on at {frame.rate} Hz in {_channels(frame)} where it began at {first.rate} Hz in {_channels(first)}\n"
                    "    -> convert its parts to one rate and number of channels"
                )
            first = first or frame
        if frame is None:
            behind = _behind_tag(content, place)
            place = behind if behind > place else content.find(b"\xff", place + 1)
        else:
            if place + frame.size <= len(content):
                yield place, frame
            place += frame.size


def _channels(frame: _Frame) -> str:
    return "one channel" if frame.mono else "two channels"


def _frame_at(content: bytes, place: int) -> _Frame | None:
    """Return the frame of layer III that begins at a place; None: none does."""
    head = int.from_bytes(content[place : place + 4], "big")
    version, layer, bits, rate = head >> 19 & 3, head >> 17 & 3, head >> 12 & 15, head >> 10 & 3
    if head >> 21 != 0x7FF or version == 1 or layer != 1 or bits in (0, 15) or rate == 3:
        return None
    kilobits = (_KILOBITS_1 if version == 3 else _KILOBITS_2)[bits]
    hertz = _RATES[version][rate]
    size = (144_000 if version == 3 else 72_000) * kilobits // hertz + (head >> 9 & 1)
    return _Frame(size, version, hertz, head >> 6 & 3 == 3)


def _behind_tag(content: bytes, place: int) -> int:
    """Return the place behind all ID3 tags that begin at a place, or the place."""
    while content.startswith(b"ID3", place) and len(content) - place >= 10:
        place += _tag_size(content[place : place + 10])
    return place


def _tag_size(start: bytes) -> int:
    """Return the bytes of an ID3 tag whose first ten bytes are given, these and a footer included."""
    size = 0
    for byte in start[6:10]:
        size = size << 7 | byte & 127
    return 10 + size + (10 if start[5] & 16 else 0)


def _is_information(content: bytes, place: int, frame: _Frame) -> bool:
    """Return whether a frame holds no audio but side information, of Xing's kind or Fraunhofer's."""
    return content[place + frame.tag : place + frame.tag + 4] in (b"Xing", b"Info") or content[place + 36 : place + 40] == b"VBRI"


def _header(head: bytes, first: _Frame, count: int) -> bytes:
    """Return a frame of Xing's that states a number of frames, like a recording's first."""
    kilobits = 8  # the number of a bit rate with which the frame is as long as readers of it ask for
    start = bytes([head[0], head[1] | 1, kilobits << 4 | head[2] & 0x0C, head[3]])
    frame = _frame_at(start, 0)
    assert frame is not None
    assert frame.like(first)
    return (start + bytes(frame.tag - 4) + b"Xing" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")).ljust(frame.size, b"\0")
