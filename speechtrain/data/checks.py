"""Checks of a corpus before training: how much there is, what stands out, and what two splits have in common."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speechtrain.data.corpus import SPLITS, Corpus, Cut
from speechtrain.data.cut_table import distinct_speakers, durations_of, has_custom, speakers_of, texts_of
from speechtrain.data.text.base import Tokenizer
from speechtrain.errors import DataError

log = logging.getLogger(__name__)

_OUTLIER_DEVIATIONS = 6.0  # median absolute deviations of the logarithm that an outlier is away from the median


@dataclass(frozen=True)
class SplitFacts:
    """What is to be known of one split.

    Attributes:
        durations: duration of each utterance, s (N,).
        rates: number of utterances by their recording's rate in Hz.
        speakers: number of speakers; 0: not known.
        words: number of words in all texts.
        characters_per_s: characters per second of each utterance (N,).
        outliers: (id, characters a second, text) of utterances that are spoken implausibly fast or slowly, the furthest first.
        unknown: number of occurrences of each token that the vocabulary lacks.
    """

    durations: npt.NDArray[np.float64]
    rates: Mapping[int, int]
    speakers: int
    words: int
    characters_per_s: npt.NDArray[np.float64]
    outliers: Sequence[tuple[str, float, str]]
    unknown: Mapping[str, int]

    @property
    def hours(self) -> float:
        """Return the hours of audio, the sum of all durations."""
        return float(self.durations.sum()) / 3600


def facts_of(cuts: Sequence[Cut], tokenizer: Tokenizer) -> SplitFacts:
    """Count and measure the utterances of a split."""
    durations = durations_of(cuts)
    texts = texts_of(cuts)
    speed = np.array([len(text) for text in texts]) / np.maximum(durations, 1e-3)
    return SplitFacts(
        durations=durations,
        rates=Counter(cut.sample_rate for cut in cuts),
        speakers=len(distinct_speakers(cuts) - {None}),
        words=sum(len(text.split()) for text in texts),
        characters_per_s=speed,
        outliers=[(cuts[index].id, float(speed[index]), texts[index]) for index in far_from_median(speed)],
        unknown=Counter(token for text in texts for token in tokenizer.unknown(text)),
    )


def far_from_median(values: npt.NDArray[np.float64]) -> list[int]:
    """Find values (N,) whose logarithm is further than six median absolute deviations from the median.

    Returns:
        Their places, the furthest first; none of fewer than eight values.
    """
    if len(values) < 8:
        return []
    logs = np.log(np.maximum(values, 1e-6))
    away = np.abs(logs - np.median(logs))
    spread = max(float(np.median(away)), 0.05)  # texts of one length would make everything else an outlier
    return [int(index) for index in np.argsort(-away) if away[index] > _OUTLIER_DEVIATIONS * spread]


def shared_between_splits(corpus: Corpus, checksums: Mapping[str, int]) -> dict[str, dict[str, list[str]]]:
    """Find speakers, parents and recordings that are in more than one split.

    Args:
        corpus: the corpus as it will be used.
        checksums: checksums of the samples of each utterance, by id.

    Returns:
        By kind (`speaker`, `parent`, `audio`) and name, `split/id` of an example in each split.
    """
    shared: dict[str, dict[str, list[str]]] = {}
    for kind in ("speaker", "parent", "audio"):
        places: dict[str, dict[str, str]] = defaultdict(dict)
        for split in SPLITS:
            cuts = corpus.splits[split]
            for place, name in _first_of_each(kind, cuts, checksums):
                places[name].setdefault(split, f"{split}/{cuts[place].id}")
        shared[kind] = {name: list(each.values()) for name, each in places.items() if len(each) > 1}
    return shared


def _first_of_each(kind: str, cuts: Sequence[Cut], checksums: Mapping[str, int]) -> Iterable[tuple[int, str]]:
    """Return the speakers, parents or recordings of a split in the order of their first utterances, and the places of these."""
    first: dict[str, int] = {}
    if kind == "speaker":
        for place, speaker in enumerate(speakers_of(cuts)):
            if speaker is not None and speaker not in first:
                first[speaker] = place
    elif checksums if kind == "audio" else has_custom(cuts):
        for place, cut in enumerate(cuts):
            if (name := _name(kind, cut, checksums)) is not None:
                first.setdefault(name, place)
    return [(place, name) for name, place in first.items()]


def _name(kind: str, cut: Cut, checksums: Mapping[str, int]) -> str | None:
    """Return the parent, or checksum and length of an utterance; None where it is not known."""
    if kind == "parent":
        parent = cut.custom.get("parent")
        return None if parent is None else str(parent)
    checksum = checksums.get(cut.id)
    return None if checksum is None else f"{checksum:08x}/{cut.num_samples}"


def describe_shared(kind: str, shared: Mapping[str, Sequence[str]]) -> str:
    """Say what splits have in common, with examples."""
    one, several = {
        "speaker": ("speaker is", "speakers are"),
        "parent": ("parent is", "parents are"),
        "audio": ("recording with the same samples is", "recordings with the same samples are"),
    }[kind]
    examples = ", ".join(" and ".join(places) for places in list(shared.values())[:5])
    return f"{len(shared)} {one if len(shared) == 1 else several} in more than one split: {examples}" + (
        f" and {len(shared) - 5} more" if len(shared) > 5 else ""
    )


def report_shared(corpus: Corpus, checksums: Mapping[str, int], on_shared: Mapping[str, str]) -> None:
    """Warn of what splits have in common, or refuse it.

    Args:
        corpus: the corpus as it will be used.
        checksums: checksums of the samples of each utterance, by id.
        on_shared: `allow`, `warn` or `error` for each of `speaker`, `parent`, `audio`.

    Raises:
        DataError: something is shared that must not be.
    """
    for kind, shared in shared_between_splits(corpus, checksums).items():
        if not shared or on_shared[kind] == "allow":
            continue
        if on_shared[kind] == "error":
            fix = f"divide the data so that each is in one split only, or set data.on_shared.{kind}=warn"
            raise DataError(f"{describe_shared(kind, shared)} (data.on_shared.{kind}=error)\n    -> {fix}")
        log.warning("%s (data.on_shared.%s=warn)", describe_shared(kind, shared), kind)


def duplicates(cuts: Iterable[Cut], checksums: Mapping[str, int]) -> list[list[str]]:
    """List the ids of utterances with the same samples, group by group."""
    groups: dict[str, list[str]] = defaultdict(list)
    for cut in cuts:
        if (name := _name("audio", cut, checksums)) is not None:
            groups[name].append(str(cut.id))
    return [ids for ids in groups.values() if len(ids) > 1]
