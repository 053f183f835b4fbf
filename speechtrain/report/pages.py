"""Self-contained HTML pages: styles, pictures and sounds are inside, and nothing is fetched."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import jiwer

from speechtrain.report.errors import (
    Utterance,
    bootstrap,
    by_duration,
    by_field,
    calibration,
    confused_tokens,
    confused_words,
    fields_of,
    total,
    wilson,
    worst,
)
from speechtrain.report.figures import Posteriors, bars_figure, calibration_figure, posteriors_figure, svg

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Example:
    """Holds an utterance that a page shows by itself.

    Attributes:
        audio: content of an audio file; None if there is none.
        media_type: media type of the audio.
        posteriors: the model's output, if it is to be drawn.
    """

    utterance: Utterance
    audio: bytes | None = None
    media_type: str = "audio/mpeg"
    posteriors: Posteriors | None = None


def choose_examples(utterances: Sequence[Utterance], *, wrong: int, posteriors: int) -> tuple[list[Utterance], list[Utterance], set[str]]:
    """Return the worst utterances, some that are right, and the ids whose posteriors are shown, half of each kind if possible."""
    bad = worst(utterances, wrong)
    fine = sorted(
        (each for each in utterances if not each.counts.errors and each.reference), key=lambda each: (-each.counts.words, each.id)
    )
    fine = fine[: max(posteriors - len(bad), posteriors // 2)]
    return bad, fine, {each.id for each in [*bad[: posteriors - len(fine)], *fine]}


def error_report(
    utterances: Sequence[Utterance],
    *,
    title: str,
    split: str,
    note: str = "",
    bad: Sequence[Example],
    fine: Sequence[Example],
    tokens: Callable[[str], Sequence[str]],
    draws: int = 1000,
) -> str:
    """Return the page on what a run got wrong.

    Args:
        utterances: all utterances of the split.
        title: heading of the page.
        split: name of the split.
        note: which run it was, below the heading.
        bad: utterances with errors that are shown.
        fine: utterances without errors that are shown.
        tokens: spells a text in the model's tokens.
        draws: number of draws of the bootstrap.
    """
    counts = total(utterances)
    characters = [each.characters for each in utterances]
    errors = [each.counts.errors for each in utterances]
    fewest = jiwer.process_words([each.reference for each in utterances], [each.hypothesis for each in utterances]) if utterances else None
    least = fewest.substitutions + fewest.insertions + fewest.deletions if fewest is not None else counts.errors
    seconds = math.fsum(each.seconds for each in utterances if not math.isnan(each.seconds))
    return render(
        "errors.html.j2",
        title=title,
        split=split,
        counts=counts,
        hours=seconds / 3600,
        draws=draws,
        wrong=wilson(counts.wrong, counts.utterances),
        note=note,
        wer=bootstrap(errors, [each.counts.words for each in utterances], count=draws),
        cer=bootstrap(*zip(*characters, strict=True), units=counts.words, count=draws) if characters else bootstrap([], []),
        edits=sum(edits for edits, _ in characters),
        characters=sum(size for _, size in characters),
        fewest=least if least != counts.errors else None,
        worst=[_values_of(example) for example in bad],
        right=[_values_of(example) for example in fine if example.posteriors is not None],
        confusions=[
            ("words", confused_words(utterances).most_common(25)),
            ("tokens", confused_tokens(utterances, tokens).most_common(25)),
        ],
        figures=_figures(utterances),
        visible=lambda token: {"": "—", " ": "␣"}.get(token, token),
    )


def _figures(utterances: Sequence[Utterance]) -> list[str]:
    figures = []
    groups = {"by duration": by_duration(utterances)} | {f"by {name}": by_field(utterances, name) for name in fields_of(utterances)}
    for title, counts in groups.items():
        if len(counts) > 1:
            figures.append(svg(bars_figure({name: (each.wer, each.words) for name, each in counts.items() if each.words}, f"WER {title}")))
    if (trust := calibration(utterances)) is not None:
        figures.append(svg(calibration_figure(trust)))
    return figures


def _values_of(example: Example) -> dict[str, Any]:
    return {
        "utterance": example.utterance,
        "audio": data_uri(example.audio, example.media_type) if example.audio else None,
        "posteriors": svg(posteriors_figure(example.posteriors)) if example.posteriors is not None else None,
    }


def data_uri(content: bytes, media_type: str) -> str:
    """Return the content of a file as an address inside the page."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def render(template: str, **values: Any) -> str:
    """Return a page from one of the templates, in which what comes from data is escaped."""
    return _environment().get_template(template).render(style=(_TEMPLATES / "style.css").read_text(encoding="utf-8"), pct=pct, **values)


def pct(value: float) -> str:
    """Return a rate in per cent."""
    return f"{100 * value:.2f} %"


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


def fields_shown(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of an utterance's manifest that are short texts or numbers."""
    return {str(name): str(value) for name, value in fields.items() if isinstance(value, (str, int, float, bool)) and len(str(value)) <= 60}
