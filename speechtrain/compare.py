"""`python -m speechtrain.compare`: runs beside each other, what differs in their configs, and whether their error rates do.

    python -m speechtrain.compare 3f2a91 b07c44              two runs, by the first letters of their ids
    python -m speechtrain.compare last 3f2a91 out=compare    and as CSV, Markdown and a page
    python -m speechtrain.compare study=lr-dropout-1b6cd7    the trials of a sweep
    python -m speechtrain.compare tags.host=here top=5 sort=test/wer

All other runs are compared with the first one. Keys are those of conf/compare.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from speechtrain.app.command import run_command
from speechtrain.config.compose import compose_command
from speechtrain.config.schemas.commands import CompareConfig
from speechtrain.console import console, print_table, waiting, width_of
from speechtrain.report.comparison import ComparisonReport, _short, compare, rows, sentence, warning_of_tests, write_files


def print_report(report: ComparisonReport) -> None:
    """Print a table of the metrics, one of the configs, and the results of the tests."""
    header, body = rows(report)
    split = 4 + len(report.metrics)
    table = _table(header[:split], [row[:split] for row in body])
    if width_of(table) > console.width:  # who they are in lines of their own
        for row in body:
            console.print(f"{row[0]}  {row[1]}  {row[2]}{f', {row[3]} s' if row[3] else ''}", markup=False)
        console.print()
        table = _table([header[0], *header[4:split]], [[row[0], *row[4:split]] for row in body])
    print_table(table, turns=True)
    if (warning := warning_of_tests(report)) is not None:
        console.print(f"\n{warning}", style="yellow", markup=False, soft_wrap=not console.is_terminal)
    if report.config:
        console.print("\nwhat differs in the configs")
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        table.add_column("key")
        for run in report.runs[:8]:
            table.add_column(run.id[:8], overflow="fold")
        for key, values in report.config.items():
            classes = [value.rpartition(".")[2] for value in values[:8]] if key.endswith("_target_") else []
            short = classes if len(set(classes)) == len(set(values[:8])) else [_short(value) for value in values[:8]]
            table.add_row(key, *map(escape, short))
        print_table(table)
        if len(report.runs) > 8:
            console.print(f"and of {len(report.runs) - 8} more runs: out=FOLDER writes all of them")
    for item in report.differences:
        console.print(f"\n{sentence(report, item)}", markup=False, soft_wrap=not console.is_terminal)


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in header:
        table.add_column(name, justify="left" if name in ("run", "name", "status") else "right", overflow="fold")
    for row in body:
        table.add_row(*map(escape, row))
    return table


def _is_key(argument: str) -> bool:
    """Return whether an argument sets a key of conf/compare.yaml, or one that is mistyped; names of runs hold `=` as well."""
    typed, equals, _ = argument.partition("=")
    key = typed.lstrip("+").partition(".")[0]
    known = [each.name for each in fields(CompareConfig)]
    return bool(equals) and (key in (*known, "hydra") or bool(get_close_matches(key, known, cutoff=0.7)))


def run(arguments: list[str]) -> int:
    """Compare runs: arguments that begin with a key of conf/compare.yaml and `=` set it, the others name runs."""
    keys = [item for item in arguments if _is_key(item)]
    cfg = compose_command(CompareConfig, keys)
    with waiting("reading the runs"):
        report, reader = compare(cfg, [item for item in arguments if item not in keys])
    print_report(report)
    if cfg.out is not None:
        console.print()
        with waiting("writing the comparison"):
            written = write_files(report, reader, Path(str(cfg.out)).absolute())
        for path in written:
            console.print(str(path), markup=False)
    return 0


if __name__ == "__main__":
    run_command(__doc__, run)
