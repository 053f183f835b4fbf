"""The page on a corpus: how much there is, how it is distributed, and what the model gets to see."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import soundfile
from matplotlib.figure import Figure

from speechtrain.config.compose import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.overrides import override_text
from speechtrain.errors import DataError, unwritable
from speechtrain.files import numbered, user_path
from speechtrain.report.figures import save_png, svg
from speechtrain.report.pages import render

if TYPE_CHECKING:
    from speechtrain.data.checks import SplitFacts
    from speechtrain.data.corpus import Cut
    from speechtrain.data.task_data import TaskData


def data_report(data: TaskData, facts: Mapping[str, SplitFacts], remarks: Sequence[str], *, examples: int, title: str) -> str:
    """Return the page on a corpus as HTML.

    Args:
        data: the data as they would be trained on.
        facts: durations, speakers and texts of each split.
        remarks: sentences on what should be looked at.
        examples: how many training utterances are drawn, at equal distances.
        title: heading of the page.
    """
    cuts = list(data.corpus.splits["train"])
    chosen = [cuts[index * len(cuts) // examples] for index in range(min(examples, len(cuts)))] if examples else []
    drawn = pictures(data, chosen)
    return render(
        "data.html.j2",
        title=title,
        facts=facts,
        quantiles={name: np.quantile(each.durations, [0, 0.05, 0.5, 0.95, 1]).tolist() for name, each in facts.items()},
        remarks=remarks,
        texts=data.corpus.normalized,
        vocabulary=data.tokenizer.vocabulary,
        figures=[
            svg(histograms({name: each.durations for name, each in facts.items()}, "duration, s")),
            svg(histograms({name: each.characters_per_s for name, each in facts.items()}, "characters a second")),
        ],
        examples=[(cut.id, cut.text, svg(drawn[cut.id])) for cut in chosen],
    )


def pictures(data: TaskData, cuts: Sequence[Cut]) -> dict[str, Figure]:
    """Draw training utterances as wave, features and augmented features, and return the figures by id."""
    ids = {cut.id for cut in cuts}
    plain, augmented = data.loader_of("train", ids), data.loader_of("train", ids, augment=True)
    seen = {id_: _features(batch, row) for batch in plain for row, id_ in enumerate(batch.ids)}
    changed = {id_: _features(batch, row) for batch in augmented for row, id_ in enumerate(batch.ids)}
    rate = data.features.sample_rate
    return {cut.id: utterance_figure(_samples(data, cut), rate, seen[cut.id], changed[cut.id]) for cut in cuts}


def draw_recordings(files: Sequence[str], folder: Path, overrides: Sequence[str], trained: ExperimentConfig | None = None) -> list[Path]:
    """Draw a picture of each recording: its wave, its features, and these augmented, as a config makes them.

    Args:
        files: audio files.
        folder: where the pictures go.
        overrides: overrides of the training's config.
        trained: config of a trained model, whose features and augmentation are taken where the overrides choose no others.

    Raises:
        UserError: a file cannot be read, or the folder cannot be written.
    """
    from speechtrain.data.prepare import prepare
    from speechtrain.tasks.build import task_for

    with TemporaryDirectory() as root:
        _write_manifest(files, Path(root))
        read = [
            "data=manifest",
            f"data.root={override_text(root)}",
            "data.train=all.jsonl",
            "data.feature_cache=null",
            "data.on_shared.audio=allow",
        ]
        cfg = ExperimentConfig.of(compose([*overrides, *read, "tracking=[]"]))
        for group in ("features", "augment"):
            if trained is not None and not any(item.startswith((f"{group}=", f"{group}.")) for item in overrides):
                cfg = replace(cfg, **{group: getattr(trained, group)})
        prepared = prepare(cfg, threads=1)
        data = prepared.for_task(task_for(cfg, prepared))
        drawn = pictures(data, data.corpus.splits["train"])
        names: set[str] = set()
        targets = [folder / f"{numbered(Path(name).stem, names)}.png" for name in files]
        try:
            for number, target in enumerate(targets):
                save_png(drawn[str(number)], target)
        except OSError as error:
            raise unwritable(folder, error, "out") from error
    return targets


def _write_manifest(files: Sequence[str], root: Path) -> None:
    """Copy the files into a folder and write a manifest of them, whose ids are their numbers.

    Raises:
        DataError: a file is no audio that can be read.
    """
    lines = []
    for number, name in enumerate(files):
        path = user_path(name)
        try:
            duration = soundfile.info(os.fsencode(path)).duration
            shutil.copyfile(path, root / f"{number}{path.suffix}")
        except (OSError, soundfile.SoundFileError) as error:
            raise DataError(f"{path}: cannot be read as audio ({error})\n    -> give a WAV, FLAC, OGG or MP3 file") from None
        lines.append(json.dumps({"audio_filepath": f"{number}{path.suffix}", "duration": duration, "text": "a", "utt_id": str(number)}))
    (root / "all.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _features(batch: Any, row: int) -> npt.NDArray[np.float32]:
    features: npt.NDArray[np.float32] = batch.features[row, : batch.feature_lengths[row]]
    return features


def _samples(data: TaskData, cut: Any) -> npt.NDArray[np.float32] | None:
    return data.corpus.read(cut, data.features.sample_rate) if data.features.from_audio else None


def histograms(values: Mapping[str, npt.NDArray[np.float64]], label: str) -> Figure:
    """Draw the distribution of a value over the utterances of each split."""
    figure = Figure(figsize=(5, 2.4))
    axes = figure.subplots()
    bins = np.linspace(0, max(float(each.max()) for each in values.values()) or 1.0, 41).tolist()
    for name, each in values.items():
        axes.hist(each, bins=bins, weights=np.full(len(each), 1 / len(each)), histtype="step", label=f"{name} ({len(each):,})")
    axes.set_xlabel(label)
    axes.set_ylabel("share of utterances")
    axes.legend()
    return figure


def utterance_figure(
    samples: npt.NDArray[np.float32] | None, rate: int, features: npt.NDArray[np.float32], augmented: npt.NDArray[np.float32]
) -> Figure:
    """Draw a wave, its features, and the same features augmented.

    Args:
        samples: (N,); None if there is no audio.
        rate: their rate in Hz.
        features: (T, F).
        augmented: (T', F).
    """
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    wave, plain, changed = figure.subplots(3, 1, height_ratios=(1, 2, 2))
    if samples is not None:
        wave.plot(np.arange(len(samples)) / rate, samples, linewidth=0.4)
        wave.set_xlim(0, len(samples) / rate)
    wave.set_ylabel("wave")
    for axes, values, name in ((plain, features, "features"), (changed, augmented, "augmented")):
        axes.imshow(values.T, origin="lower", aspect="auto", interpolation="nearest", cmap="magma")
        axes.set_ylabel(name)
    changed.set_xlabel("frames")
    return figure
