"""Matplotlib figures for pages and files, made without pyplot's global state, so that any thread may draw."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from speechtrain.console import is_rate
from speechtrain.files import atomically
from speechtrain.report.classes import Curve
from speechtrain.report.errors import Calibration

STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "figure.dpi": 100,
}
"""How matplotlib draws for our pages."""
COLOURS = ("#1f5fa8", "#d1662b", "#2f8f5b", "#8a4fa3", "#b8902a", "#4c9bb0", "#a83a52", "#666666")


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element of a page."""
    buffer = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", text, flags=re.DOTALL)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path) as temporary, rc_context(STYLE):
        figure.savefig(temporary, format="png", bbox_inches="tight", dpi=110)


def history_figure(epochs: Sequence[Mapping[str, float]], best: tuple[str, int, float] | None) -> Figure:
    """Draw losses, rates (those of errors on a logarithmic axis), learning rate and time over the epochs.

    Args:
        epochs: the metrics of each epoch.
        best: (metric, epoch from 0, value) that is marked; None marks none.
    """
    names = {name for metrics in epochs for name in metrics}
    rates = sorted(name for name in names if is_rate(name))
    losses = sorted(name for name in names if name.endswith("/loss"))
    times = sorted(name for name in names if name.startswith("time/"))
    panels = [
        (title, chosen)
        for title, chosen in (
            ("loss", losses),
            ("error rates, %", [name for name in rates if _is_error_rate(name)]),
            ("rates, %", [name for name in rates if not _is_error_rate(name)]),
            ("learning rate", ["train/lr"] if "train/lr" in names else []),
            ("gradient norm", ["train/grad_norm"] if "train/grad_norm" in names else []),
            ("seconds an epoch", times),
        )
        if chosen
    ]
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 3.1 * -(-len(panels) // 3)))
        for place, (title, chosen) in enumerate(panels, start=1):
            axes = figure.add_subplot(-(-len(panels) // 3), 3, place)
            scale = 100.0 if title.endswith("%") else 1.0
            for colour, name in zip(COLOURS, chosen, strict=False):
                points = [(epoch + 1, scale * metrics[name]) for epoch, metrics in enumerate(epochs) if name in metrics]
                axes.plot(*zip(*points, strict=True), color=colour, marker="." if len(points) < 40 else None, label=name)
                if best is not None and best[0] == name:
                    axes.plot([best[1] + 1], [scale * best[2]], "o", color=colour, markersize=8, fillstyle="none")
            axes.set_title(title)
            axes.set_xlabel("epoch")
            if title.startswith("error"):
                _scale_error_rates(axes, [scale * metrics[name] for metrics in epochs for name in chosen if name in metrics])
            if len(chosen) > 1 or title.endswith("%"):
                axes.legend(fontsize=8)
        figure.tight_layout()
    return figure


def _scale_error_rates(axes: Axes, rates: Sequence[float]) -> None:
    """Give rates a logarithmic axis, which is linear from the lowest of them down to 0 where a model made no errors."""
    above = [rate for rate in rates if rate > 0]
    if not above:
        return
    if len(above) < len(rates):
        axes.set_yscale("symlog", linthresh=min(above), linscale=0.8)
        axes.set_ylim(bottom=-0.05 * min(above))
    else:
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def _is_error_rate(name: str) -> bool:
    return name.rpartition("/")[2].removesuffix("_std") in ("wer", "cer", "per")


def bars_figure(groups: Mapping[str, tuple[float, int]], title: str) -> Figure:
    """Draw the word error rates of groups, which are given as name -> (rate, words)."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 0.5 + 0.26 * max(2, len(groups))))
        axes = figure.add_subplot()
        names = list(groups)[::-1]
        values = [100 * groups[name][0] for name in names]
        axes.barh(names, values, color=COLOURS[0], height=0.7)
        for row, name in enumerate(names):
            axes.text(values[row], row, f"  {values[row]:.2f} %  of {groups[name][1]:,} words", va="center", fontsize=8)
        axes.set_xlim(0, 1.5 * max([*values, 1e-3]))
        axes.set_title(title)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
    return figure


def calibration_figure(calibration: Calibration) -> Figure:
    """Draw how often words of a confidence are right."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.6))
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle="--")
        sizes = np.array([count for _, _, count in calibration.bins], dtype=np.float64)
        axes.plot([mean for mean, _, _ in calibration.bins], [share for _, share, _ in calibration.bins], color=COLOURS[0])
        axes.scatter(
            [mean for mean, _, _ in calibration.bins],
            [share for _, share, _ in calibration.bins],
            s=15 + 120 * sizes / sizes.max(),
            color=COLOURS[0],
        )
        for mean, share, count in calibration.bins:
            axes.annotate(f"{count:,}", (mean, share), (0, 9), textcoords="offset points", ha="center", fontsize=8)
        axes.set_xlim(-0.03, 1.06)
        axes.set_ylim(-0.03, 1.12)
        axes.set_xlabel("confidence of words, beside each point their number")
        axes.set_ylabel("share that is right")
        axes.set_title(f"calibration error {100 * calibration.error:.2f} % of {int(sizes.sum()):,} words")
    return figure


@dataclass(frozen=True)
class Posteriors:
    """Holds the model's output for one utterance.

    Attributes:
        log_probs: log-probabilities (T', V).
        tokens: the V names, the blank first.
        spans: (token, start, end) in encoder frames, of the reference's forced alignment; None where there is none.
        frame_rate: rate of encoder frames in Hz.
    """

    log_probs: npt.NDArray[np.float32]
    tokens: Sequence[str]
    spans: Sequence[tuple[str, int, int]] | None
    frame_rate: float


def posteriors_figure(posteriors: Posteriors, *, most: int = 24) -> Figure:
    """Draw the probabilities of the likeliest tokens over time, above the forced alignment of the reference."""
    probabilities = np.exp(posteriors.log_probs)
    peaks = probabilities[:, 1:].max(axis=0) if probabilities.shape[1] > 1 and len(probabilities) else np.zeros(0)
    tokens = posteriors.tokens
    in_reference = {token for token, _, _ in posteriors.spans or ()}
    ranked = sorted(range(1, len(tokens)), key=lambda label: (tokens[label] not in in_reference, -peaks[label - 1]))
    drawn = sorted(label for label in ranked[:most] if peaks[label - 1] > 0.02 or tokens[label] in in_reference)
    rows = [0, *drawn]
    seconds = len(probabilities) / posteriors.frame_rate
    with rc_context(STYLE):
        figure = Figure(figsize=(min(24.0, max(11.5, 1.6 * seconds)), 0.9 + 0.2 * len(rows)))
        axes = figure.add_subplot()
        axes.imshow(
            probabilities[:, rows].T,
            aspect="auto",
            interpolation="nearest",
            cmap="Blues",
            vmin=0,
            vmax=1,
            extent=(0.0, seconds, len(rows) - 0.5, -0.5),
        )
        axes.set_yticks(range(len(rows)), ["blank", *(_visible(tokens[label]) for label in drawn)])
        axes.set_xlabel("s")
        _mark_spans(axes, posteriors)
    return figure


def _mark_spans(axes: Axes, posteriors: Posteriors) -> None:
    for token, start, end in posteriors.spans or ():
        left, right = start / posteriors.frame_rate, end / posteriors.frame_rate
        axes.axvspan(left, right, ymin=0, ymax=1, color=COLOURS[1], alpha=0.13, linewidth=0)
        axes.text((left + right) / 2, -0.7, _visible(token), ha="center", va="bottom", fontsize=8, color=COLOURS[1])


def _visible(name: str) -> str:
    return "␣" if name == " " else name.replace("$", r"\$")


def confusion_figure(confusion: npt.NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Draw the counts of wanted (rows) and found (columns) classes, coloured by their share of the row."""
    rows = [*classes, "none of them"][: len(confusion)]
    size = max(3.0, 0.36 * len(classes) + 1.2)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    with rc_context(STYLE):
        figure = Figure(figsize=(size + 0.6, size))
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        names, columns = ([_visible(name) for name in each] for each in (rows, classes))
        axes.set_xticks(range(len(classes)), columns, rotation=60 if max(map(len, classes), default=0) > 2 else 0)
        axes.set_yticks(range(len(rows)), names)
        axes.set_xlabel("found")
        axes.set_ylabel("wanted")
        for row, column in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=7, color=colour)
        axes.spines[:].set_visible(False)
    return figure


def curves_figure(curves: Sequence[Curve], title: str, x: str, y: str) -> Figure:
    """Draw a curve for each class, and name those with the smallest areas."""
    hardest = sorted(curves, key=lambda curve: curve.area)[: len(COLOURS)]
    colours = dict(zip((curve.name for curve in hardest), COLOURS, strict=False))
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 4.0))
        axes = figure.add_subplot()
        for curve in sorted(curves, key=lambda curve: -curve.area):
            label = f"{_visible(curve.name)}  {curve.area:.4f}" if curve.name in colours else None
            axes.plot(curve.x, curve.y, color=colours.get(curve.name, "#cccccc"), linewidth=1.2, label=label)
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        mean = f", mean area {np.mean([curve.area for curve in curves]):.4f}" if curves else ""
        axes.set_title(f"{title}{mean}")
        if curves:
            axes.legend(fontsize=7, title="area" if len(curves) == len(hardest) else "smallest areas", title_fontsize=7)
    return figure


def signal_figure(signals: Mapping[str, npt.NDArray[np.float32]], title: str, frame_rate: float) -> Figure:
    """Draw the wanted signal of an utterance, the model's and their mixture over time, with a row for each channel.

    Args:
        signals: `wanted`, `found` and perhaps `mixture`, each (T, C).
        title: heading of the figure.
        frame_rate: rate of the frames in Hz.
    """
    wanted = signals["wanted"]
    seconds = np.arange(len(wanted)) / frame_rate
    channels = wanted.shape[1]
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 1.9 * channels))
        for channel in range(channels):
            axes = figure.add_subplot(channels, 1, channel + 1)
            if "mixture" in signals:
                axes.plot(seconds, signals["mixture"][:, 0], color="#cccccc", linewidth=0.7, label="mixture")
            axes.plot(seconds, wanted[:, channel], color=COLOURS[0], linewidth=1.4, label="wanted")
            axes.plot(seconds, signals["found"][:, channel], color=COLOURS[1], linewidth=1.0, label="found")
            axes.set_xlabel("s")
            axes.legend(fontsize=7, ncols=3, loc="upper right")
            axes.set_title(title if channel == 0 else "")
    return figure


def histogram_figure(values: Sequence[float], name: str) -> Figure:
    """Draw the distribution of a measure over utterances."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.6))
        axes = figure.add_subplot()
        axes.hist(values, bins=min(40, max(5, len(values) // 5)), color=COLOURS[0])
        axes.set_xlabel(name)
        axes.set_ylabel("utterances")
        axes.set_title(f"median {np.median(values):.4g}, lowest {min(values):.4g}, highest {max(values):.4g}")
    return figure
