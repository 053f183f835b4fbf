"""A corpus ready to be trained on: first for any task (`PreparedCorpus`), then with the targets of one, in batches (`TaskData`)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np

from speechtrain.data.audio import Audio
from speechtrain.data.batches import Reference, Target
from speechtrain.data.batching import Limits
from speechtrain.data.corpus import SPLITS, Corpus, Cut
from speechtrain.data.cut_table import distinct_speakers, ids_of, seconds, speakers_of, take, texts_of
from speechtrain.data.features.augment import Augment
from speechtrain.data.features.cache import SpectrumCache
from speechtrain.data.features.features import Features
from speechtrain.data.loader import BatchBuilder, Loader
from speechtrain.data.text.base import Tokenizer
from speechtrain.data.text.normalize import count_words
from speechtrain.errors import DataError


class MakesTargets(Protocol):
    """As much of a task as batches need."""

    def target(self, reference: Reference) -> Target:
        """Make the target of an utterance: labels (L,) int64, or frames (L, C) float32."""
        ...


@dataclass(frozen=True, kw_only=True)
class PreparedCorpus:
    """A corpus that has been read and checked, with all that its features and labels are made by. It has no targets, so no batches.

    Attributes:
        corpus: its usable utterances.
        cache: the spectra of these utterances.
        features: computes features from spectra.
        tokenizer: converts texts to labels.
        augment: augmentation of training utterances.
        limits: size limits of batches.
        num_workers: processes that build batches; 0: a thread of this one.
        seed: seed of the order of batches and of augmentation.
        lenient: whether utterances that turn out to be unreadable while training are left out.
        skipped: how many utterances were left out as bad.
    """

    corpus: Corpus
    cache: SpectrumCache
    features: Features
    tokenizer: Tokenizer
    augment: Augment
    limits: Limits
    num_workers: int
    seed: int
    lenient: bool
    skipped: int

    def for_task(self, task: MakesTargets) -> TaskData:
        """Add a task's targets, with which there are batches."""
        own = {each.name: getattr(self, each.name) for each in fields(PreparedCorpus)}
        return TaskData(**own, target=task.target)

    def frames(self, cut: Cut) -> int:
        """Return the number of frames T of an utterance, computed from its duration."""
        return self.features.num_frames(cut.samples_at(self.features.sample_rate))

    def example_samples(self) -> Audio:
        """Read the samples (N,) of one utterance, of the test data if there are any.

        Raises:
            DataError: none can be read.
        """
        problem: DataError | None = None
        for cut in itertools.chain.from_iterable(self.corpus.splits[split] for split in reversed(SPLITS)):
            try:
                return self.corpus.read(cut, self.features.sample_rate)
            except DataError as error:
                problem = problem or error
        raise problem or DataError("there is no utterance")

    def facts(self, split: str) -> dict[str, float]:
        """Count the `utterances`, `hours`, `speakers` and `words` of a split."""
        cuts = self.corpus.splits[split]
        return {
            "utterances": float(len(cuts)),
            "hours": seconds(cuts) / 3600,
            "speakers": float(len(distinct_speakers(cuts) - {None})),
            "words": float(count_words(texts_of(cuts))),
        }

    def fingerprint(self, split: str, *, audio: bool = True) -> str:
        """Digest ids, texts, speakers and, with `audio`, samples of a split, whatever the order of its utterances."""
        digest = hashlib.blake2b(digest_size=16)
        cuts, checksums = self.corpus.splits[split], self.cache.checksums if audio else {}
        cuts = take(cuts, np.array(sorted(range(len(cuts)), key=list(ids_of(cuts)).__getitem__), dtype=np.int64))
        rows = zip(ids_of(cuts), texts_of(cuts), speakers_of(cuts), strict=True)
        lines = (f"{name}\t{text}\t{speaker}\t{checksums.get(name, 0)}\n" for name, text, speaker in rows)
        while some := "".join(itertools.islice(lines, 1024)):
            digest.update(some.encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class TaskData(PreparedCorpus):
    """A prepared corpus with the targets of a task: it has loaders.

    Attributes:
        target: makes the task's target of an utterance's reference.
        infeasible: how many training utterances the model cannot learn; see `speechtrain.data.feasibility`.
    """

    target: Callable[[Reference], Target]
    infeasible: int = 0

    def with_limits(self, limits: Limits) -> TaskData:
        """Return the same data in batches of other limits."""
        return replace(self, limits=limits)

    def loader(
        self, split: str, *, shuffle: bool = False, augment: bool = False, views: int = 1, max_batches: int | None = None
    ) -> Loader | None:
        """Make the loader of a split; None if it has no utterances.

        Args:
            split: train, val or test.
            shuffle: divide it into batches anew each epoch.
            augment: change its utterances as `self.augment` says.
            views: how often each utterance stands in a batch; see `BatchBuilder`.
            max_batches: use only the first ones of each epoch; None: all.
        """
        cuts = self.corpus.splits[split]
        if not len(cuts):
            return None
        return self._loader(cuts, self._builder(cuts, augment=augment, views=views), shuffle=shuffle, max_batches=max_batches)

    def loader_of(self, split: str, ids: Collection[str], *, augment: bool = False) -> Loader:
        """Make a loader of some utterances of a split, as they are for evaluation or as the first epoch augments them."""
        whole = self.corpus.splits[split]
        cuts = take(whole, np.array([place for place, name in enumerate(ids_of(whole)) if name in ids], dtype=np.int64))
        sources = self.corpus.splits[split] if augment and self.augment.recombine_prob else cuts  # of words to recombine
        return self._loader(cuts, self._builder(sources, augment=augment))

    def _builder(self, cuts: Sequence[Cut], *, augment: bool, views: int = 1) -> BatchBuilder:
        augmentation = self.augment if augment else None
        return BatchBuilder(cuts, self.cache, self.features, self.target, augmentation, self.seed, views=views, lenient=self.lenient)

    def _loader(self, cuts: Sequence[Cut], builder: BatchBuilder, *, shuffle: bool = False, max_batches: int | None = None) -> Loader:
        return Loader(cuts, builder, self.limits, shuffle=shuffle, seed=self.seed, max_batches=max_batches, num_workers=self.num_workers)
