"""`python -m speechtrain.compare`: runs beside each other, what differs in their configs, and whether their error rates do.

    python -m speechtrain.compare 3f2a91 b07c44              two runs, by the first letters of their ids
    python -m speechtrain.compare last 3f2a91 out=compare    and as CSV, Markdown and a page
    python -m speechtrain.compare study=lr-dropout-1b6cd7    the trials of a sweep
    python -m speechtrain.compare tags.host=here top=5 sort=test/wer

All other runs are compared with the first one. Keys are those of conf/compare.yaml.
"""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from speechtrain.app.command import run_command
from speechtrain.config.compose import compose_command
from speechtrain.config.schemas.commands import CompareConfig
from speechtrain.console import console
from speechtrain.report.comparison import ComparisonReport, _short, compare, rows, sentence, warning_of_tests, write_files


def print_report(report: ComparisonReport) -> None:
    """Print a table of the metrics, one of the configs, and the results of the tests."""
    header, body = rows(report)
    split = 4 + len(report.metrics)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for index, name in enumerate(header[:split]):
        table.add_column(name, justify="right" if index >= 3 else "left", overflow="fold")
    for row in body:
        table.add_row(*row[:split])
    console.print(table)
    if (warning := warning_of_tests(report)) is not None:
        console.print(f"\n{warning}", style="yellow", markup=False)
    if report.config:
        console.print("\nwhat differs in the configs")
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        table.add_column("key")
        for run in report.runs[:8]:
            table.add_column(run.id[:8], overflow="fold")
        for key, values in report.config.items():
            table.add_row(key, *(_short(value) for value in values[:8]))
        console.print(table)
        if len(report.runs) > 8:
            console.print(f"and of {len(report.runs) - 8} more runs: out=FOLDER writes all of them")
    for item in report.differences:
        console.print(f"\n{sentence(report, item)}", markup=False)


def run(arguments: list[str]) -> int:
    """Compare runs: arguments with `=` are keys of conf/compare.yaml, the others name runs."""
    cfg = compose_command(CompareConfig, [item for item in arguments if "=" in item])
    report, reader = compare(cfg, [item for item in arguments if "=" not in item])
    print_report(report)
    if cfg.out is not None:
        console.print()
        for path in write_files(report, reader, Path(str(cfg.out)).absolute()):
            console.print(str(path), markup=False)
    return 0


if __name__ == "__main__":
    run_command(__doc__, run)
