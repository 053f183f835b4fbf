"""The one place that writes to the terminal."""

from __future__ import annotations

import logging
import os
import sys

from rich.console import Console
from rich.markup import escape

_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
"""Tables in a file or a pipe are not folded to 80 columns."""
console = Console(highlight=False, soft_wrap=True, width=_WIDTH)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

RATES = ("wer", "cer", "per", "exact", "accuracy", "precision", "recall", "f1")


def is_rate(metric: str) -> bool:
    """Whether people read `stage/metric` as per cent."""
    return metric.rpartition("/")[2].removesuffix("_std") in RATES


_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class ConsoleHandler(logging.Handler):
    """Log records as plain lines, warnings and errors in colour."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        text = escape(self.format(record))
        style = _STYLES.get(record.levelno)
        where = errors if record.levelno >= logging.WARNING else console
        where.print(f"{record.levelname.lower()}: {text}" if style else text, style=style)


def shown(name: str, value: float) -> str:
    """A metric for people: rates as per cent."""
    short = name.rpartition("/")[2]
    if is_rate(name):
        return f"{100 * value:.2f} %"
    if short == "audio_s_per_s":
        return f"{value:,.0f}"
    return f"{value:.2e}" if short == "lr" else f"{value:.4f}"
