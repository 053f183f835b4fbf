"""Shows the status of a study: as a table in a terminal, and as a small page without scripts that renews itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from speechtrain.console import format_metric
from speechtrain.errors import counted
from speechtrain.sweep.reports.finalists import race_rows, verdict_of
from speechtrain.sweep.reports.status import ENDS, EndedTrial, Status
from speechtrain.sweep.study.results import short_text

RENEWED_SECONDS = 5
"""Time after which the page is fetched again by the browser."""
MOST_BYTES = 48_000
"""Size of the page at most; trials that ended long ago are left out of a longer one."""
_LIVE = ("running", "paused", "stopping")
_STYLE = """body{font:14px system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse;margin:1em 0}
td,th{padding:2px 12px 2px 0;text-align:left;white-space:nowrap}th{border-bottom:1px solid #999}.n{text-align:right}
.running{color:#05a}.failed{color:#b00}.pruned,.paused,.continued,.note{color:#777}.cancelled,.interrupted{color:#a60}h1{font-size:1.3em}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}.running{color:#7bf}.failed{color:#f77}}"""


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours, as is readable."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def summary(status: Status) -> Iterator[tuple[str, str]]:
    """Yield the lines above the trials, each with its heading."""
    yield "study", status.study
    yield "state", f"{status.state}: {status.words}"
    yield "trials", ", ".join(f"{count} {word}" for word, count in status.counts.items() if count) or "none"
    if status.left is not None and status.n_trials is not None and status.left > 0:
        of_all = f" of {status.n_trials}" if status.n_trials < 1_000_000 else ""
        when = f", about {duration(status.seconds_left)}" if status.seconds_left is not None and of_all else ""
        yield "left", f"{status.left}{of_all}{when}" if of_all else "until hydra.sweeper.stop_when holds"
    raced = status.race is not None and status.race["winner"] is not None
    if status.all_equal:
        yield "best", f"none: all complete trials have {_values(status, status.best[0])}"
    for trial in [] if status.all_equal else status.best:
        yield "best of the search" if raced else "best", f"#{trial.number}  {_values(status, trial)}  {short_text(trial.params)}"
    if status.race is not None:
        for row in race_rows(status.race, next(iter(status.objectives), "")):
            yield "finalist", "  ".join([*row[:2], f"over {counted(int(row[2]), 'seed')}", row[4]])
        yield "race", verdict_of(status.race)


def table_of(status: Status) -> RenderableType:
    """Return the status for a terminal: what is known of the study, the trials that run, and the latest failures."""
    head = Table.grid(padding=(0, 3, 0, 0))
    for name, text in summary(status):
        head.add_row(name, Text(text))
    parts: list[RenderableType] = [head]
    if status.running:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for name in ("running", "epoch", "last value", "for", "host", "", "parameters"):
            table.add_column(name)
        for trial in status.running:
            cells = [
                f"#{trial.number}",
                "-" if trial.epoch is None else str(trial.epoch),
                "-" if trial.value is None else f"{trial.value:.4g}",
            ]
            table.add_row(*map(Text, [*cells, duration(trial.seconds), trial.host, trial.note, short_text(trial.params)]))
        parts += [Text(), table]
    if status.failures:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        table.add_column("failed")
        table.add_column("reason")
        for failure in status.failures:
            table.add_row(f"#{failure.number}", Text(failure.reason or "unknown"))
        parts += [Text(), table]
    return Group(*parts)


def page_of(status: Status) -> str:
    """Return the page: a line for each trial, those that run before those that have ended, the latest first."""
    refresh = f'<meta http-equiv="refresh" content="{RENEWED_SECONDS}">' if status.state in _LIVE else ""
    made = f"{datetime.fromtimestamp(status.made, tz=UTC):%Y-%m-%d %H:%M:%S} UTC"
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text[:300])}</td></tr>\n" for name, text in summary(status))
    begin = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{refresh}'
        f"<title>{escape(status.state)} {escape(status.study)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(status.study)}</h1>\n<table>{lines}</table>\n"
        "<table><tr><th>trial<th>state<th>value<th>epoch<th>time<th>parameters<th></tr>\n"
    )
    end = f'</table>\n<p class="note">as of {made}{{}}</p>\n</body></html>\n'
    rows, size, left_out = [], len(begin.encode()) + len(end.encode()), 0
    for row in _rows(status):
        size += len(row.encode())
        if size > MOST_BYTES:
            left_out += 1
        else:
            rows.append(row)
    missing = sum(status.counts[word] for word in ENDS) - len(status.ended) + left_out
    return begin + "".join(rows) + end.format(f"; {missing} earlier trials are in trials.csv" if missing > 0 else "")


def _rows(status: Status) -> Iterator[str]:
    for trial in status.running:
        value = "" if trial.value is None else f"{trial.value:.4g}"
        epoch = "" if trial.epoch is None else str(trial.epoch)
        note = f"{trial.host} {trial.note}".strip()
        yield _row([str(trial.number), "running", value, epoch, duration(trial.seconds), short_text(trial.params), note])
    for each in status.ended:
        seconds = "" if each.seconds is None else duration(each.seconds)
        yield _row([str(each.number), each.state, _values(status, each), "", seconds, short_text(each.params), each.reason])


def _row(cells: Sequence[str]) -> str:
    shown = "".join(f"<td>{escape(cell[:160])}" for cell in cells)
    return f'<tr class="{cells[1]}">{shown}</tr>\n'


def _values(status: Status, trial: EndedTrial) -> str:
    names = status.objectives or ["" for _ in trial.values]
    return "  ".join(_value(name, value) for name, value in zip(names, trial.values, strict=False)) or "-"


def _value(name: str, value: Any) -> str:
    return format_metric(name, value) if math.isfinite(value) else str(value)
