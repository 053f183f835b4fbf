"""Tells of the race of the finalists: lines for a terminal, rows for a page, and what `optimization_results.yaml` has of it.

All take what `Standing.to_dict` says, for the page and the status read it from the study's storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from speechtrain.console import format_metric
from speechtrain.errors import counted


def race_rows(race: Mapping[str, Any], metric: str) -> list[list[str]]:
    """Return a row for each finalist: its trial, mean and interval over further seeds, number of seeds, value in the search, remark."""
    winner = race["winner"]
    rows = []
    for each in race["finalists"]:
        seeds = len(each["values"])
        mean = format_metric(metric, each["mean"]) if seeds else "-"
        interval = f"{mean} ± {format_metric(metric, each['half_width'])}" if each["half_width"] is not None else mean
        rows.append([f"#{each['trial']}", interval, str(seeds), format_metric(metric, each["value_in_search"]), _remark(each, winner)])
    return rows


def _remark(finalist: Mapping[str, Any], winner: int | None) -> str:
    if finalist["out"]:
        return str(finalist["out"])
    if finalist["trial"] == winner:
        return "the best mean"
    if finalist["p"] is None or winner is None:
        return ""
    return f"not told apart from trial {winner} (p = {finalist['p']:.2g})"


def verdict_of(race: Mapping[str, Any], reason: str | None = None) -> str:
    """Return how a race was decided, or that it was not, and why."""
    if race["verdict"]:
        return str(race["verdict"])
    return f"not decided after {counted(race['seeds'], 'further seed')}" + (f": {reason}" if reason else "")


def race_lines(race: Mapping[str, Any], metric: str, reason: str | None = None) -> Iterator[str]:
    """Yield the lines that end a race: a table of the finalists, and the verdict.

    Args:
        race: what it has come to.
        metric: name of the objective.
        reason: why it was ended before it was decided.
    """
    if race["finalists"]:
        rows = [["finalist", "mean and interval", "seeds", "in the search", ""], *race_rows(race, metric)]
        yield from _aligned(rows)
    yield f"race of the finalists: {verdict_of(race, reason)}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def results_of(race: Mapping[str, Any], significance: float) -> dict[str, Any]:
    """Return what `optimization_results.yaml` has of a race."""
    finalists = [
        {
            "trial": each["trial"],
            "mean": each["mean"] if each["values"] else None,
            "interval": [each["mean"] - each["half_width"], each["mean"] + each["half_width"]] if each["half_width"] is not None else None,
            "values": list(each["values"]),
            "value_in_search": each["value_in_search"],
            "out": each["out"] or None,
        }
        for each in race["finalists"]
    ]
    tied = [each["trial"] for each in race["finalists"] if not each["out"]]
    return {
        "verdict": verdict_of(race),
        "confidence": 1 - significance,
        "not_told_apart": tied if len(tied) > 1 else [],
        "finalists": finalists,
    }
