"""What can be known of a corpus before training: how much there is, what stands out, and what is in two splits at once."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speechtrain.data.corpus import SPLITS, Corpus, Cut
from speechtrain.data.text.tokenizers import Tokenizer
from speechtrain.errors import DataError

log = logging.getLogger(__name__)

_FAR = 6.0  # median absolute deviations, of the logarithm, that an outlier is away from the median


@dataclass(frozen=True)
class SplitFacts:
    """Of one split.

    Attributes:
        durations: s of each utterance (N,).
        rates: utterances by their files' rate in Hz.
        speakers: how many; 0: not known.
        characters_per_s: of each utterance (N,).
        outliers: (id, characters a second, text) of those that are spoken implausibly fast or slowly, the furthest first.
        unknown: tokens that the vocabulary lacks, with their number.
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
        """Of audio."""
        return float(self.durations.sum()) / 3600


def facts_of(cuts: Sequence[Cut], tokenizer: Tokenizer) -> SplitFacts:
    """Look at every utterance of a split once."""
    durations = np.array([cut.duration for cut in cuts], dtype=np.float64)
    texts = [cut.text for cut in cuts]
    speed = np.array([len(text) for text in texts]) / np.maximum(durations, 1e-3)
    return SplitFacts(
        durations=durations,
        rates=Counter(cut.sample_rate for cut in cuts),
        speakers=len({cut.speaker for cut in cuts} - {None}),
        words=sum(len(text.split()) for text in texts),
        characters_per_s=speed,
        outliers=[(cuts[index].id, float(speed[index]), texts[index]) for index in far_from_median(speed)],
        unknown=Counter(token for text in texts for token in tokenizer.unknown(text)),
    )


def far_from_median(values: npt.NDArray[np.float64]) -> list[int]:
    """Which of them lie further than six median absolute deviations from the median, of their logarithms; the furthest first."""
    if len(values) < 8:
        return []
    logs = np.log(np.maximum(values, 1e-6))
    away = np.abs(logs - np.median(logs))
    spread = max(float(np.median(away)), 0.05)  # texts of one length would make everything else an outlier
    return [int(index) for index in np.argsort(-away) if away[index] > _FAR * spread]


def shared_between_splits(corpus: Corpus, checksums: Mapping[str, int]) -> dict[str, dict[str, list[str]]]:
    """What stands in more than one split, by kind (`speaker`, `parent`, `audio`): its name, and `split/id` of an example in each."""
    found: dict[str, dict[str, list[str]]] = {}
    for kind in ("speaker", "parent", "audio"):
        places: dict[str, dict[str, str]] = defaultdict(dict)
        for split in SPLITS:
            for cut in corpus.splits[split]:
                if (name := _name(kind, cut, checksums)) is not None:
                    places[name].setdefault(split, f"{split}/{cut.id}")
        found[kind] = {name: list(each.values()) for name, each in places.items() if len(each) > 1}
    return found


def _name(kind: str, cut: Cut, checksums: Mapping[str, int]) -> str | None:
    if kind == "speaker":
        speaker = cut.speaker
        return None if speaker is None else str(speaker)
    if kind == "parent":
        parent = cut.custom.get("parent")
        return None if parent is None else str(parent)
    check = checksums.get(cut.id)
    return None if check is None else f"{check:08x}/{cut.num_samples}"


def in_words(kind: str, shared: Mapping[str, Sequence[str]]) -> str:
    """What is shared, as a sentence with examples."""
    names = {"speaker": "speakers are", "parent": "parents are", "audio": "recordings with the same samples are"}
    examples = ", ".join(" and ".join(places) for places in list(shared.values())[:5])
    return f"{len(shared)} {names[kind]} in more than one split: {examples}" + (f" and {len(shared) - 5} more" if len(shared) > 5 else "")


def report_shared(corpus: Corpus, checksums: Mapping[str, int], on_shared: Mapping[str, str]) -> None:
    """Warn of what two splits have in common, or refuse it.

    Args:
        corpus: as it will be used.
        checksums: of the samples of each utterance, by id.
        on_shared: `allow`, `warn` or `error` for each of `speaker`, `parent`, `audio`.

    Raises:
        DataError: something is shared that must not be.
    """
    for kind, shared in shared_between_splits(corpus, checksums).items():
        if not shared or on_shared[kind] == "allow":
            continue
        if on_shared[kind] == "error":
            fix = f"divide the data so that this is not so, or set data.on_shared.{kind}=warn"
            raise DataError(f"{in_words(kind, shared)} (data.on_shared.{kind}=error)\n    -> {fix}")
        log.warning("%s (data.on_shared.%s=warn)", in_words(kind, shared), kind)


def duplicates(cuts: Iterable[Cut], checksums: Mapping[str, int]) -> list[list[str]]:
    """Utterances with the same samples, group by group."""
    groups: dict[str, list[str]] = defaultdict(list)
    for cut in cuts:
        if (name := _name("audio", cut, checksums)) is not None:
            groups[name].append(str(cut.id))
    return [ids for ids in groups.values() if len(ids) > 1]
