"""`data=mix`: several corpora as one, each seen as often as its weight says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from speechtrain.data.audio import Audio
from speechtrain.data.corpus import SPLITS, Corpus, CorpusSource, Cut, Skip, read_audio
from speechtrain.data.table_cache import KeepsTables
from speechtrain.errors import DataError


class Mix(KeepsTables):
    """A corpus made of others.

    Args:
        corpora: the corpora by name; the name is put before the ids and speakers of its utterances.
        weights: how often each training utterance of a corpus is seen in an epoch, 1 for corpora that are not named; of a weight of 0.3
            three in ten utterances are seen, always the same ones. Validation and test utterances are seen once.
    """

    def __init__(self, corpora: Mapping[str, CorpusSource], weights: Mapping[str, float]) -> None:
        self.corpora = dict(corpora)
        self.weights = {name: float(weights.get(name, 1.0)) for name in corpora}
        self._loaded: dict[str, Corpus] = {}

    def load(self, limit: int | None) -> Corpus:
        """Load every corpus; `limit` is that of each.

        Raises:
            DataError: one of them cannot be loaded, or has signals.
        """
        skipped: list[Skip] = []
        cuts: dict[str, list[Cut]] = {name: [] for name in SPLITS}
        for name, source in self.corpora.items():
            if isinstance(source, KeepsTables):
                source.table_cache = self.table_cache
            corpus = self._loaded[name] = source.load(limit)
            if corpus.target is not None:
                raise DataError(f"data.corpora.{name}: has signals, which cannot be mixed with texts")
            skipped += [replace(skip, where=f"{name}: {skip.where}") for skip in corpus.skipped]
            for split in SPLITS:
                weight = self.weights[name] if split == "train" else 1.0
                for cut in corpus.splits[split]:
                    cuts[split] += [_renamed(cut, name, copy) for copy in range(_times(f"{name}/{cut.id}", weight))]
        from_files = all(corpus.from_files for corpus in self._loaded.values())
        prefetch = self.prefetch if any(corpus.prefetch is not None for corpus in self._loaded.values()) else None
        return Corpus({**cuts}, skipped, read=read_audio if from_files else self.read, prefetch=prefetch)

    def read(self, cut: Cut, rate: int) -> Audio:
        """Read an utterance (N,) as the corpus does that it is from."""
        name, original = _original(cut)
        return self._loaded[name].read(original, rate)

    def prefetch(self, cuts: Sequence[Cut], owner: object) -> None:
        """Tell each corpus which of its utterances `owner` reads next."""
        originals = [_original(cut) for cut in cuts]
        for name, corpus in self._loaded.items():
            if corpus.prefetch is not None:
                corpus.prefetch([original for own, original in originals if own == name], owner)


def _original(cut: Cut) -> tuple[str, Cut]:
    """Return the name of the corpus that an utterance is from, and the utterance as it is there."""
    name, original = cut.custom["mixed"]
    return name, replace(cut, id=original)


def _times(name: str, weight: float) -> int:
    """Return how often an utterance is seen: the whole part of the weight, and once more if its name's hash is below the fraction."""
    position = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest()) / 2**48
    return int(weight) + (position < weight - int(weight))


def _renamed(cut: Cut, name: str, copy: int) -> Cut:
    """Return an utterance under the name of its corpus and the number of its copy."""
    label = f"{name}/{cut.id}" + (f"#{copy + 1}" if copy else "")
    speaker = None if cut.speaker is None else f"{name}/{cut.speaker}"
    return replace(cut, id=label, speaker=speaker, custom={**cut.custom, "corpus": name, "mixed": (name, cut.id)})
