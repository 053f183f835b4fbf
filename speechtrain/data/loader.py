"""Loaders: the batches of each epoch, made ahead of the training by threads or processes."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from speechtrain.data.batches import Batch, Reference, Target, stacked
from speechtrain.data.batching import BUFFER, Limits, divided, sampled
from speechtrain.data.corpus import Cut
from speechtrain.data.features.augment import Augment, Word, words_of
from speechtrain.data.features.cache import SpectrumCache
from speechtrain.data.features.features import Features
from speechtrain.errors import DataError

log = logging.getLogger(__name__)


class Utterances(Dataset[Batch]):
    """Turns (epoch, ids) into a batch.

    Args:
        cuts: of one split.
        cache: of their spectra.
        target: the task's.
        augment: None for evaluation.
        views: how often each utterance stands in a batch, augmented each time anew but for its tempo; first all in one view, then all in
            the next.
    """

    def __init__(
        self,
        cuts: list[Cut],
        cache: SpectrumCache,
        features: Features,
        target: Callable[[Reference], Target],
        augment: Augment | None,
        seed: int,
        views: int = 1,
    ) -> None:
        self._cuts: Mapping[str, Cut] = {cut.id: cut for cut in cuts}
        self._cache = cache
        self._features = features
        self._target = target
        self._augment = None if augment is None or augment.changes_nothing else augment
        self._seed = seed
        self._views = views
        self._plain: dict[str, torch.Tensor] = {}
        self._words: dict[str, list[Word]] = {}
        self._pools: dict[str | None, list[Word]] = {}
        if self._augment is not None and self._augment.recombine_prob:
            self._find_words()

    def __getitem__(self, key: tuple[int, Sequence[str]]) -> Batch:
        epoch, wanted = key
        found, left_out = self._readable(epoch, wanted)
        ids = [*found] * self._views
        items = [views[view] for view in range(self._views) for views in found.values()]
        lengths = np.array([len(features) for features, _ in items], dtype=np.int64)
        targets, target_lengths = stacked([self._target(reference) for _, reference in items])
        batch = np.zeros((len(items), int(lengths.max()), self._features.size), dtype=np.float32)
        for row, (features, _) in enumerate(items):
            batch[row, : lengths[row]] = features.numpy()
        return Batch(
            features=batch,
            feature_lengths=lengths,
            targets=targets,
            target_lengths=target_lengths,
            ids=tuple(ids),
            texts=tuple(reference.text for _, reference in items),
            seconds=float(lengths.sum()) / self._features.frame_rate,
            left_out=tuple(left_out),
        )

    def _readable(self, epoch: int, ids: Sequence[str]) -> tuple[dict[str, list[tuple[torch.Tensor, Reference]]], list[tuple[str, str]]]:
        """All views of each utterance that can be read; of another, if it is none of them. And what is wrong with the rest."""
        found: dict[str, list[tuple[torch.Tensor, Reference]]] = {}
        left_out: list[tuple[str, str]] = []
        for utterance in itertools.chain(ids, self._cuts):
            if found and len(found) + len(left_out) >= len(ids):
                break
            try:
                found[utterance] = [self._one(self._cuts[utterance], epoch, view) for view in range(self._views)]
            except DataError as error:
                if not self._cache.lenient:
                    raise
                left_out.append((utterance, str(error)))
        if not found:
            name, reason = left_out[0]
            raise DataError(f"no utterance can be read; the first: {name}: {reason}")
        return found, left_out[: len(ids)]

    def _one(self, cut: Cut, epoch: int, view: int) -> tuple[torch.Tensor, Reference]:
        """Features (T, F) of an utterance, and what is wanted of it."""
        reference = Reference(cut.text, partial(self._cache.target, cut))
        if self._augment is None:
            features = self._plain.get(cut.id)
            if features is None:
                features = self._features.finish(self._features.mel(self._cache.get(cut)))
                if self._cache.room_for(features):
                    self._plain[cut.id] = features
            return features, reference
        rng = self._augment.generator(self._seed, epoch, cut.id)
        words = self._augment.recombine(self._words.get(cut.id, ()), self._pools.get(cut.speaker, ()), rng)
        if words is None:
            spectrum = self._augment.wave_spectrum(partial(self._cache.samples, cut), self._features, rng)
            return self._augment(self._cache.get(cut) if spectrum is None else spectrum, self._features, rng, view), reference
        pieces = [self._cache.get(self._cuts[word.utterance])[word.start : word.end] for word in words]
        return self._augment(torch.cat(pieces), self._features, rng, view), Reference(" ".join(word.text for word in words))

    def _find_words(self) -> None:
        for cut in self._cuts.values():
            frames = self._features.num_frames(cut.samples_at(self._features.sample_rate))
            words = words_of(cut.custom, cut.id, frames, self._features.frame_rate)
            self._words[cut.id] = words
            self._pools.setdefault(cut.speaker, []).extend(words)
        if not any(self._words.values()):
            raise DataError(
                "augment.recombine_prob needs word times, and no utterance has any\n"
                "    -> give 'words' in the manifest, or set augment.recombine_prob=0"
            )


class Loader:
    """The batches of a split, anew each epoch.

    Args:
        cuts: of the split.
        dataset: makes them into batches.
        limits: sizes.
        shuffle: another order each epoch (training).
        max_batches: use only the first ones.

    Attributes:
        left_out: what was wrong with the utterances that could not be read, by id.
    """

    def __init__(
        self, cuts: list[Cut], dataset: Utterances, limits: Limits, *, shuffle: bool, seed: int, max_batches: int | None = None
    ) -> None:
        self._cuts = cuts
        self._dataset = dataset
        self._limits = limits
        self._shuffle = shuffle
        self._seed = seed
        self._max_batches = max_batches
        self.left_out: dict[str, str] = {}
        self._part = (0, 1)
        self._epoch = 0
        self._done = 0
        self._plans: dict[int, list[list[str]]] = {}
        self._count: int | None = None

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Choose the epoch whose order and augmentation come next, and how many of its batches are left out because they were seen."""
        self._epoch = epoch
        self._done = done

    def take_part(self, which: int, of: int) -> None:
        """Make only this process's share of each batch: one of `of` parts, of which each utterance is in one."""
        self._part = (which, of)

    def __len__(self) -> int:
        return len(self._plan())

    def example(self) -> Batch:
        """A batch of one utterance, which tells the types and the fixed sizes of all."""
        return self._dataset[(0, self._plan()[0][:1])]

    def largest(self) -> Batch:
        """The batch with the most frames, padding counted, as far as durations tell."""
        durations = {cut.id: cut.duration for cut in self._cuts}
        ids = max(self._plan(), key=lambda ids: len(ids) * max(durations[each] for each in ids))
        which, of = self._part
        return self._dataset[(self._epoch, ids[which::of] or ids[:1])]

    def __iter__(self) -> Iterator[Batch]:
        which, of = self._part
        plan = self._plan()[self._done :]
        keys = [(self._epoch, ids[which::of] or ids[:1]) for ids in plan]
        if self._limits.num_workers == 0:
            batches: Iterable[Batch] = _ahead(self._dataset, keys)
        else:
            workers = self._limits.num_workers
            batches = DataLoader(self._dataset, batch_size=None, sampler=keys, num_workers=workers, collate_fn=_as_it_is)  # type: ignore[arg-type]
        for (_, ids), batch, stands_in in zip(keys, batches, (len(whole) <= which for whole in plan), strict=True):
            self._tell(batch.left_out)
            # where nothing could be read another utterance stands in: training needs the steps it was told of, evaluation counts each once
            if self._shuffle or len(batch.left_out) < len(ids):
                yield batch._replace(stands_in=True) if stands_in else batch

    def _tell(self, left_out: Sequence[tuple[str, str]]) -> None:
        for utterance, reason in left_out:
            if utterance not in self.left_out:
                self.left_out[utterance] = reason
                if len(self.left_out) <= _TOLD:
                    more = "; more will only be counted" if len(self.left_out) == _TOLD else ""
                    log.warning("%s: %s; it is left out (data.on_bad=skip)%s", utterance, reason, more)

    def _plan(self) -> list[list[str]]:
        epoch = self._epoch if self._shuffle else 0
        if epoch not in self._plans:
            batches = self._sampled(epoch)
            if self._count is None:
                self._count = len(batches if epoch == 0 else self._sampled(0))
            self._plans = {epoch: self._of_equal_number(batches, self._count)[: self._max_batches]}
        return self._plans[epoch]

    def _of_equal_number(self, batches: list[list[str]], count: int) -> list[list[str]]:
        """As many batches as the first epoch has, so that every epoch has as many steps, in a resumed run too.

        The sampler's last batches of a bucket are small: two are joined where there is one too many, the largest is halved where one is
        missing.
        """
        durations = {cut.id: cut.duration for cut in self._cuts} if len(batches) != count else {}
        while len(batches) > count:
            small = sorted(range(len(batches)), key=lambda index: sum(durations[each] for each in batches[index]))[:2]
            first, second = min(small), max(small)
            batches[first] += batches.pop(second)
        while len(batches) < count:
            large = max(range(len(batches)), key=lambda index: len(batches[index]))
            half = len(batches[large]) // 2
            batches[large : large + 1] = [batches[large][:half], batches[large][half:]]
        return batches

    def _sampled(self, epoch: int) -> list[list[str]]:
        ids, durations = [cut.id for cut in self._cuts], [cut.duration for cut in self._cuts]
        if len(ids) <= BUFFER:
            return sampled(ids, durations, self._limits, shuffle=self._shuffle, seed=self._seed, epoch=epoch)
        batches = divided(np.array(durations), self._limits, shuffle=self._shuffle, seed=self._seed, epoch=epoch)
        return [[ids[index] for index in batch] for batch in batches]


def _ahead(dataset: Utterances, keys: Sequence[tuple[int, Sequence[str]]]) -> Iterator[Batch]:
    """The batches in order, each made by a thread while those before it are used."""
    pool = ThreadPoolExecutor(1, "batches")
    pending: deque[Future[Batch]] = deque()
    try:
        for key in keys:
            pending.append(pool.submit(dataset.__getitem__, key))
            if len(pending) > _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_AHEAD = 2  # batches that are made before they are asked for


def _as_it_is(batch: Batch) -> Batch:
    return batch


_TOLD = 10  # utterances that are left out while training, which are named
