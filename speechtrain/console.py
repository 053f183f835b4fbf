"""The one place that writes to the terminal."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

for _name in ("stdin", "stdout", "stderr"):
    if getattr(sys, _name) is None:  # it was closed by whoever started this; another file would get its number
        setattr(sys, _name, open(os.devnull, "r" if _name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115, PTH123

_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
"""In a file or a pipe, tables are not folded to the 80 columns that rich assumes there."""
console = Console(highlight=False, soft_wrap=True, width=_WIDTH)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

RATES = ("wer", "cer", "per", "exact", "accuracy", "precision", "recall", "f1", "empty")


def is_rate(metric: str) -> bool:
    """Return whether people read `stage/metric` as per cent."""
    return metric.rpartition("/")[2].removesuffix("_std") in RATES


_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class ConsoleHandler(logging.Handler):
    """Prints log records as plain lines, warnings and errors in colour and to the standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record, behind its level if it is a warning or an error."""
        text = escape(self.format(record))
        style = _STYLES.get(record.levelno)
        both_seen = console.is_terminal and errors.is_terminal  # a bar is drawn anew below lines of its own console only
        where = errors if record.levelno >= logging.WARNING and not both_seen else console
        where.print(f"{record.levelname.lower()}: {text}" if style else text, style=style)


@contextmanager
def printing_to(file: IO[str]) -> Iterator[None]:
    """Send what is printed to a file; afterwards it goes to the standard output and error again, whatever these are then."""
    console.file = errors.file = file
    try:
        yield
    finally:
        console.file = errors.file = None  # type: ignore[assignment]  # rich's word for the standard streams


def announce(text: str) -> None:
    """Print what is being done, if someone watches: to the standard error, and only if that is a terminal."""
    if errors.is_terminal:
        errors.print(text, style="dim", markup=False)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal while something is done; what it yields advances the bar by so many of `total`."""
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Show on a terminal what is being done and for how long, for what may take more than two seconds and has no steps to count."""
    if not console.is_terminal:
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        progress.add_task(label, total=None)
        yield


def print_table(table: Table, *, turns: bool = False) -> None:
    """Print a table as `print_aligned` does.

    Args:
        table: the table.
        turns: whether rows become columns where it is wider than the terminal and fits so.
    """
    if turns and width_of(table) > console.width:
        turned = _turned(table)
        table = turned if width_of(turned) <= console.width else table
    print_aligned(table)


def print_aligned(tables: RenderableType) -> None:
    """Print tables; in a file or a pipe without blanks at the ends of lines."""
    if console.is_terminal:
        console.print(tables)
        return
    with console.capture() as captured:
        console.print(tables)
    console.print("\n".join(line.rstrip() for line in captured.get().split("\n")), end="", markup=False)


def width_of(table: Table) -> int:
    """Return how many columns of a terminal a table takes that is not folded."""
    return console.measure(table, options=console.options.update(width=_ANY_WIDTH)).maximum


_ANY_WIDTH = 10_000


def _turned(table: Table) -> Table:
    """Return a table whose columns are the rows of another."""
    from rich.table import Table

    first, *others = table.columns
    turned = Table(box=None, pad_edge=False, title=table.title, title_justify="left", title_style=table.title_style)
    turned.add_column(first.header)
    for cell in first.cells:
        turned.add_column(cell, justify="right")
    for column in others:
        turned.add_row(column.header, *column.cells)
    return turned


def format_metric(name: str, value: float) -> str:
    """Return the value of a metric as people read it: rates in per cent, four decimals unless the number is very small or large."""
    short = name.rpartition("/")[2]
    if is_rate(name):
        return f"{100 * value:.2f} %"
    if short == "audio_s_per_s":
        return f"{value:,.0f}"
    if short == "lr":
        return f"{value:.2e}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"
