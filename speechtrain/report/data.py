"""The page on a corpus: how much there is, how it is distributed, and what the model gets to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from speechtrain.report.figures import svg
from speechtrain.report.pages import render

if TYPE_CHECKING:
    from speechtrain.data.checks import SplitFacts
    from speechtrain.data.corpus import Cut
    from speechtrain.data.prepare import Data


def data_report(data: Data, facts: Mapping[str, SplitFacts], remarks: Sequence[str], *, examples: int, title: str) -> str:
    """The page as HTML.

    Args:
        data: as it would be trained on.
        facts: of each split.
        remarks: what to look at.
        examples: training utterances that are drawn, at equal distances.
        title: for people.
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


def pictures(data: Data, cuts: Sequence[Cut]) -> dict[str, Figure]:
    """Training utterances as wave, features and augmented features, by id."""
    ids = {cut.id for cut in cuts}
    plain, augmented = data.only("train", ids), data.only("train", ids, augment=True)
    seen = {id_: _features(batch, row) for batch in plain for row, id_ in enumerate(batch.ids)}
    changed = {id_: _features(batch, row) for batch in augmented for row, id_ in enumerate(batch.ids)}
    rate = data.features.sample_rate
    return {cut.id: utterance_figure(_samples(data, cut), rate, seen[cut.id], changed[cut.id]) for cut in cuts}


def _features(batch: Any, row: int) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = batch.features[row, : batch.feature_lengths[row]]
    return found


def _samples(data: Data, cut: Any) -> npt.NDArray[np.float32] | None:
    return data.corpus.read(cut, data.features.sample_rate) if data.features.hears else None


def histograms(values: Mapping[str, npt.NDArray[np.float64]], label: str) -> Figure:
    """Shares of utterances, the splits over each other."""
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
    """A wave, the features of it, and the same augmented.

    Args:
        samples: (N,); None: there is no audio.
        rate: Hz of them.
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
