"""Text formats of transcriptions and alignments: plain text, JSON, SRT, WebVTT, TextGrid, CTM."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from speechtrain.errors import printable

if TYPE_CHECKING:
    from speechtrain.decode.align import Word
    from speechtrain.inference.alignment import Alignment
    from speechtrain.tasks.base import Transcription

_LINE_PAUSE_SECONDS, _LINE_SECONDS = 0.5, 7.0
"""A line of subtitles ends at a pause this long, or before it lasts longer than this."""
_LINE_LETTERS = 84
"""Letters of a line of subtitles: two rows of 42, as broadcasters have them."""


def as_text(name: str, texts: Iterable[Transcription]) -> Iterator[str]:  # noqa: ARG001
    """Write plain text, a line for each piece."""
    for text in texts:
        yield f"{text.text}\n"


def as_json(name: str, texts: Iterable[Transcription]) -> Iterator[str]:
    """Write one object of JSON: the text, and its pieces with their words."""
    transcriptions = list(texts)
    pieces: list[Mapping[str, Any]] = []
    for each in transcriptions:
        start, end = (each.words[0].start, each.words[-1].end) if each.words else (None, None)
        piece = {
            "text": each.text,
            "start": start,
            "end": end,
            "confidence": each.confidence,
            "words": [_rounded(asdict(w)) for w in each.words],
        }
        if each.alternatives:
            piece["alternatives"] = [{"text": text, "score": score} for text, score in each.alternatives]
        pieces.append(_rounded(piece))
    text = " ".join(each.text for each in transcriptions if each.text)
    yield json.dumps({"file": printable(name), "text": text, "segments": pieces}, ensure_ascii=False) + "\n"


def as_srt(name: str, texts: Iterable[Transcription]) -> Iterator[str]:  # noqa: ARG001
    """Write SubRip: numbered lines of subtitles with their times."""
    for number, (start, end, text) in enumerate(_cues(texts), start=1):
        yield f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n"


def as_vtt(name: str, texts: Iterable[Transcription]) -> Iterator[str]:  # noqa: ARG001
    """Write WebVTT: lines of subtitles with their times."""
    yield "WEBVTT\n\n"
    for start, end, text in _cues(texts):
        safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield f"{_clock(start, '.')} --> {_clock(end, '.')}\n{safe}\n\n"


FORMATS: dict[str, Callable[[str, Iterable[Transcription]], Iterator[str]]] = {
    "text": as_text,
    "json": as_json,
    "srt": as_srt,
    "vtt": as_vtt,
}


_NOT_IN_FIELDS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def in_a_field(name: str) -> str:
    r"""Return a file's name as it can stand in one field of a line: line ends, tabs and other control characters as `\n`, `\t`, `\x..`."""
    return _NOT_IN_FIELDS.sub(lambda match: match[0].encode("unicode_escape").decode(), printable(name))


def _cues(texts: Iterable[Transcription]) -> Iterator[tuple[float, float, str]]:

    for text in texts:
        for line in lines(text.words):
            yield line[0].start, max(line[-1].end, line[0].start + 0.001), " ".join(word.text for word in line)


def _clock(seconds: float, mark: str) -> str:
    whole = round(1000 * seconds)
    return f"{whole // 3_600_000:02d}:{whole // 60_000 % 60:02d}:{whole // 1000 % 60:02d}{mark}{whole % 1000:03d}"


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) and math.isfinite(value) else value for key, value in values.items()}


def lines(words: Iterable[Word]) -> Iterator[list[Word]]:
    """Divide words into lines of subtitles, which are short enough to be read and end at each pause."""
    line: list[Word] = []
    for word in words:
        letters = sum(len(each.text) + 1 for each in line) + len(word.text)
        if line and (
            word.start - line[-1].end > _LINE_PAUSE_SECONDS or word.end - line[0].start > _LINE_SECONDS or letters > _LINE_LETTERS
        ):
            yield line
            line = []
        line.append(word)
    if line:
        yield line


def textgrid(alignment: Alignment) -> str:
    """Write a TextGrid in Praat's long form: a tier of words and one of tokens, without gaps (Boersma and Weenink, TextGrid formats)."""
    tiers = {"words": alignment.words, "tokens": alignment.tokens}
    head = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {alignment.duration:.6f}", "tiers? <exists>"]
    lines = [*head, f"size = {len(tiers)}", "item []:"]
    for number, (name, words) in enumerate(tiers.items(), start=1):
        intervals = list(_without_gaps(words, alignment.duration))
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"', "        xmin = 0"]
        lines += [f"        xmax = {alignment.duration:.6f}", f"        intervals: size = {len(intervals)}"]
        for count, (start, end, text) in enumerate(intervals, start=1):
            quoted = text.replace('"', '""')
            lines += [
                f"        intervals [{count}]:",
                f"            xmin = {start:.6f}",
                f"            xmax = {end:.6f}",
                f'            text = "{quoted}"',
            ]
    return "\n".join(lines) + "\n"


def _without_gaps(words: Sequence[Word], duration: float) -> Iterator[tuple[float, float, str]]:
    at = 0.0
    for word in words:
        start, end = max(at, word.start), min(word.end, duration)
        if end - start < 1e-6:
            continue
        if start - at > 1e-6:
            yield at, start, ""
        yield (start if start - at > 1e-6 else at), end, word.text
        at = end
    if duration - at > 1e-6:
        yield at, duration, ""


def ctm(utterance: str, alignment: Alignment) -> str:
    """Write lines of NIST's time-marked conversation files: recording, channel, begin, duration, word, confidence."""
    name = re.sub(r"\s", "_", utterance)
    return "".join(f"{name} 1 {w.start:.3f} {w.end - w.start:.3f} {w.text} {w.confidence:.4f}\n" for w in alignment.words)


def as_object(utterance: str, text: str, alignment: Alignment) -> dict[str, Any]:
    """Return an alignment as an object for JSON; times are in s."""

    def listed(words: Sequence[Word]) -> list[dict[str, Any]]:
        return [{"text": w.text, "start": round(w.start, 4), "end": round(w.end, 4), "confidence": round(w.confidence, 4)} for w in words]

    names = ("duration", "score", "log_likelihood_ratio")
    sizes = {**{name: round(getattr(alignment, name), 4) for name in names}, "heard": alignment.heard}
    return {"id": utterance, "text": text, **sizes, "words": listed(alignment.words), "tokens": listed(alignment.tokens)}
