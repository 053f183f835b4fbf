"""Compares runs: metrics, differences of their configs, and paired bootstrap tests of their error rates."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechtrain.config.moved import present_name
from speechtrain.config.schemas.commands import CompareConfig
from speechtrain.config.targets import task_directions
from speechtrain.console import format_metric, is_rate
from speechtrain.errors import ConfigError, Problem, did_you_mean, unwritable
from speechtrain.tracking.mlflow.lookup import open_reader

if TYPE_CHECKING:
    from speechtrain.report.errors import Comparison
    from speechtrain.tracking.mlflow.reader import Reader, Record


_NOT_COMPARED = ("output_dir", "resume", "rerun", "trust", "report.", "samples", "tracking.")


_CURVES = ("train/loss", "val/loss", "val/wer", "val/cer", "val/exact", "train/lr", "train/grad_norm", "train/audio_s_per_s")


@dataclass(frozen=True)
class Difference:
    """Holds the word error rates of a run and of the first one, on the utterances that both were tested on."""

    run: Record
    utterances: int
    first_wer: float
    wer: float
    test: Comparison


@dataclass
class ComparisonReport:
    """Holds what a comparison shows, in whatever form.

    Attributes:
        runs: the rows.
        metrics: the columns.
        config: keys whose values are not the same in all runs, with the value of each run.
        differences: differences between the error rates of each run and of the first.
    """

    runs: list[Record]
    metrics: list[str]
    config: dict[str, list[str]]
    differences: list[Difference]


def compare(cfg: CompareConfig, runs: Sequence[str]) -> tuple[ComparisonReport, Reader]:
    """Read runs and compare them.

    Args:
        cfg: the config of `conf/compare.yaml`.
        runs: names of runs besides those of the config.

    Raises:
        ConfigError: there is nothing to compare, or no such run or metric.
    """
    names = [str(name) for name in [*runs, *cfg.runs]]
    if not (names or cfg.study or cfg.tags):
        raise ConfigError([Problem("runs", "there is nothing to compare", "name runs: python -m speechtrain.compare RUN RUN")])
    reader = open_reader(cfg.tracking_uri, cfg.experiment, runs=names, studies=[str(study) for study in cfg.study])
    records: list[Record] = []
    for name in names:
        run = reader.run(name)
        records += reader.trials(run.tags["speechtrain.study"]) if run.is_sweep else [run]
    for study in cfg.study:
        records += reader.trials(str(study))
    if cfg.tags:
        records += reader.tagged({str(key): str(value) for key, value in _flat(cfg.tags).items()})
    records = list({run.id: run for run in records}.values())
    metrics = _metrics(records, cfg.metrics)
    records = _ordered(records, cfg.sort)[: cfg.top]
    differences = _differences(reader, records, cfg.bootstrap) if 1 < len(records) <= 20 else []
    return ComparisonReport(records, metrics, differing(records), differences), reader


def _flat(tags: Any, prefix: str = "") -> dict[str, Any]:
    """Return tags by their dotted names: `tags.data.fingerprint.test=...` is one tag."""
    out: dict[str, Any] = {}
    for key, value in tags.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def _metrics(runs: Sequence[Record], requested: Sequence[str] | None) -> list[str]:
    measured = sorted({name for run in runs for name in run.metrics if not name.startswith("system/")})
    if requested is None:
        chosen = [name for name in measured if name.startswith(("test/", "best/")) and not name.endswith(("audio_s_per_s", "best/epoch"))]
        return chosen or [name for name in measured if name.startswith("val/")]
    if unknown := [name for name in requested if name not in measured]:
        raise ConfigError([Problem("metrics", f"no run has '{name}'", did_you_mean(name, measured)) for name in unknown])
    return list(requested)


def _ordered(runs: list[Record], metric: str | None) -> list[Record]:
    if metric is None:
        return runs
    measured = sorted({name for run in runs for name in run.metrics})
    if metric not in measured:
        raise ConfigError([Problem("sort", f"no run has '{metric}'", did_you_mean(metric, measured))])
    sign = 1 if is_lower_better(metric, runs) else -1
    return sorted(runs, key=lambda run: (metric not in run.metrics, sign * run.metrics.get(metric, 0.0)))


def is_lower_better(metric: str, runs: Sequence[Record]) -> bool:
    """Return whether less of a metric is better, as the runs' tasks say; true for metrics of no task, such as seconds."""
    directions: dict[str, str] = {}
    for target in {run.params.get("task._target_", "") for run in runs}:
        directions |= task_directions(present_name(target))
    return directions.get(metric.rpartition("/")[2], "minimize") == "minimize"


def differing(runs: Sequence[Record]) -> dict[str, list[str]]:
    """Return the keys of the config whose values differ between runs, with each run's value, `-` where it has none."""
    keys = sorted({key for run in runs for key in run.params})
    differing_keys = {}
    for key in keys:
        values = [present_name(value) if key.endswith("._target_") else value for value in (run.params.get(key, "-") for run in runs)]
        if len(set(values)) > 1 and not key.startswith(_NOT_COMPARED):
            differing_keys[key] = values
    return differing_keys


def _differences(reader: Reader, runs: Sequence[Record], draws: int) -> list[Difference]:
    from speechtrain.report.errors import Utterance, paired_bootstrap

    texts = [reader.transcripts(run) for run in runs]
    results = []
    for run, other in zip(runs[1:], texts[1:], strict=True):
        shared = [key for key, (reference, _) in other.items() if key in texts[0] and texts[0][key][0] == reference]
        if not shared:
            continue
        first = [Utterance(key, *texts[0][key]).counts for key in shared]
        second = [Utterance(key, *other[key]).counts for key in shared]
        words = [counts.words for counts in first]
        test = paired_bootstrap([each.errors for each in first], [each.errors for each in second], words, count=draws)
        size = max(1, sum(words))
        rates = [sum(each.errors for each in side) / size for side in (first, second)]
        results.append(Difference(run, len(shared), rates[0], rates[1], test))
    return results


def rows(report: ComparisonReport) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table, as text."""
    header = ["run", "name", "status", "seconds", *report.metrics, *report.config]
    body = []
    for index, run in enumerate(report.runs):
        took = f"{run.seconds:.0f}" if run.seconds is not None else ""
        metrics = [format_metric(name, run.metrics[name]) if name in run.metrics else "" for name in report.metrics]
        body.append([run.id[:8], _name(run), run.status.lower(), took, *metrics, *(values[index] for values in report.config.values())])
    return header, body


def _name(run: Record) -> str:
    """Return the name of a run, with its number if it is the trial of a sweep."""
    trial = run.tags.get("speechtrain.trial")
    return run.name if trial is None else f"#{trial} {run.name}"


def _short(value: str) -> str:
    """Return a number with six significant digits, and other text as it is."""
    try:
        return f"{float(value):.6g}" if "." in value else value
    except ValueError:
        return value


def sentence(report: ComparisonReport, item: Difference) -> str:
    """Return the result of a test in words."""
    gap, test = item.test.difference, item.test
    verdict = "no difference beyond chance" if test.p_value > 0.05 else ("better" if gap.value < 0 else "worse")
    rates = f"WER of {item.run.id[:8]} {100 * item.wer:.2f} %, of {report.runs[0].id[:8]} {100 * item.first_wer:.2f} %"
    interval = f"{100 * gap.value:+.2f} points (95 % from {100 * gap.low:+.2f} to {100 * gap.high:+.2f})"
    return f"{rates} on the same {item.utterances} utterances: {interval}, p = {test.p_value:.3g}; {verdict}"


def warning_of_tests(report: ComparisonReport) -> str | None:
    """Return a warning that names the runs which only tested the settings, on little data or for few steps; None: there are none."""
    tests = [f"{run.id[:8]} ({kind})" for run in report.runs if (kind := run.tags.get("speechtrain.test_run"))]
    if not tests:
        return None
    return f"{', '.join(tests)} only tested the settings, on little data or for few steps: its figures say nothing of the model"


def as_csv(report: ComparisonReport) -> str:
    """Return the table as CSV, with all numbers unrounded."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["run", "name", "status", "seconds", *report.metrics, *report.config])
    for index, run in enumerate(report.runs):
        metrics = [run.metrics.get(name) for name in report.metrics]
        writer.writerow([run.id, _name(run), run.status, run.seconds, *metrics, *(values[index] for values in report.config.values())])
    return buffer.getvalue()


def as_markdown(report: ComparisonReport) -> str:
    """Return the table in Markdown, for a page or a pull request."""
    header, body = rows(report)
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in body]
    notes = [f"- {sentence(report, item)}" for item in report.differences]
    if (warning := warning_of_tests(report)) is not None:
        notes.append(f"- {warning}")
    return "\n".join([*lines, "", *notes]) + "\n"


def as_page(report: ComparisonReport, reader: Reader) -> str:
    """Return the comparison as a page, with the curves of all runs over each other."""
    from plotly.offline import get_plotlyjs

    from speechtrain.report.pages import render

    header, body = rows(report)
    return render(
        "compare.html.j2",
        title="Comparison of " + (f"{len(report.runs)} runs" if len(report.runs) > 1 else report.runs[0].name),
        header=header[: 4 + len(report.metrics)],
        body=[row[: 4 + len(report.metrics)] for row in body],
        runs=report.runs,
        config=report.config,
        warning=warning_of_tests(report),
        sentences=[sentence(report, item) for item in report.differences],
        plots=_curves(report.runs, reader),
        plotly=get_plotlyjs(),
    )


def _curves(runs: Sequence[Record], reader: Reader) -> list[tuple[str, str]]:
    from plotly.graph_objects import Figure, Scatter

    curves = []
    for metric in _CURVES:
        scale = 100.0 if is_rate(metric) else 1.0
        histories = [(run, reader.history(run, metric)) for run in runs]
        values = [value for _, points in histories for _, value in points]
        is_log = metric in ("val/wer", "val/cer") and any(value > 0 for value in values)
        floor = min((value for value in values if value > 0), default=0.0) / 2 if is_log else -math.inf
        lines = [
            Scatter(
                x=[step for step, _ in points],
                y=[scale * max(floor, value) for _, value in points],
                customdata=[scale * value for _, value in points],
                hovertemplate="epoch %{x}: %{customdata:.4g}",
                name=f"{run.name} {run.id[:6]}",
                mode="lines+markers",
            )
            for run, points in histories
            if points
        ]
        if lines:
            figure = Figure(lines)
            figure.update_layout(height=380, margin={"t": 20, "l": 60, "r": 20, "b": 40}, xaxis_title="epoch", template="simple_white")
            figure.update_layout(showlegend=True)
            if is_log:
                note = f"0 is drawn at {scale * floor:.2g}" if min(values) < floor else None
                figure.update_yaxes(type="log", title=note)
            curves.append(
                (
                    f"{metric}, %" if is_rate(metric) else metric,
                    figure.to_html(full_html=False, include_plotlyjs=False, default_width="100%"),
                )
            )
    return curves


def best_run(report: ComparisonReport) -> Record:
    """Return the best run by the first metric, or the first run if it was never measured."""
    metric = next(iter(report.metrics), None)
    measured = [run for run in report.runs if metric is not None and metric in run.metrics]
    if metric is None or not measured:
        return report.runs[0]
    return (min if is_lower_better(metric, report.runs) else max)(measured, key=lambda run: run.metrics[metric])


def write_files(report: ComparisonReport, reader: Reader, folder: Path) -> list[Path]:
    """Write `compare.csv`, `compare.md`, `compare.html` and the config of the best run, and return the files.

    Raises:
        UserError: the folder cannot be written.
    """
    from speechtrain.files import write_text

    contents = {"compare.csv": as_csv(report), "compare.md": as_markdown(report), "compare.html": as_page(report, reader)}
    if (config := reader.text(best_run(report), "config.yaml")) is not None:
        contents["best.yaml"] = f"# The config of run {best_run(report).id}: python -m speechtrain rerun={best_run(report).id}\n{config}"
    try:
        for name, content in contents.items():
            write_text(folder / name, content)
    except OSError as error:
        raise unwritable(folder, error, "out") from error
    return [folder / name for name in contents]
