"""Loaders: the batches of each epoch, made ahead of the training by a thread or by worker processes."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from speechtrain.data.batches import Batch, Reference, Target, stack_features, stack_targets
from speechtrain.data.batching import Limits, epoch_batches, equalize_count
from speechtrain.data.corpus import Cut
from speechtrain.data.cut_table import by_id, durations_of, ids_of
from speechtrain.data.features.augment import Augment, WordSpan, word_spans
from speechtrain.data.features.cache import SpectrumCache
from speechtrain.data.features.features import Features
from speechtrain.errors import DataError, UserError

log = logging.getLogger(__name__)

_PREFETCHED = 2  # batches that are made before they are asked for
_AHEAD = 2  # batches behind the one that is built whose recordings are fetched, where they come from elsewhere
_MAX_WARNINGS = 10  # utterances left out while training that are named in the log


class BatchKey(NamedTuple):
    """Says what a batch is built of.

    Attributes:
        epoch: number of the epoch, counted from 0.
        ids: ids of the utterances.
        upcoming: ids of utterances of the next batches that the same thread or process builds, where it is of use to know them.
    """

    epoch: int
    ids: Sequence[str]
    upcoming: Sequence[str] = ()


class BatchBuilder(Dataset[Batch]):
    """Builds a batch from an epoch and the ids of its utterances.

    Args:
        cuts: the utterances of one split.
        cache: gives their spectra and signals.
        features: makes features of spectra.
        target: makes a task's target of a reference.
        augment: augmentation of training utterances; None for evaluation.
        seed: seed of the augmentation.
        views: how often each utterance stands in a batch, augmented each time anew but for its tempo; all utterances in one view come
            before all in the next.
        lenient: build the batch without the utterances that cannot be read, instead of raising their error.
    """

    def __init__(
        self,
        cuts: Sequence[Cut],
        cache: SpectrumCache,
        features: Features,
        target: Callable[[Reference], Target],
        augment: Augment | None,
        seed: int,
        *,
        views: int = 1,
        lenient: bool = False,
    ) -> None:
        self._cuts = by_id(cuts)
        self._cache = cache
        self._features = features
        self._target = target
        self._augment = None if augment is None or augment.changes_nothing else augment
        self._seed = seed
        self._views = views
        self._lenient = lenient
        self._unaugmented: dict[str, torch.Tensor] = {}
        self._words: dict[str, list[WordSpan]] = {}
        self._words_of_speaker: dict[str | None, list[WordSpan]] = {}
        if self._augment is not None and self._augment.recombine_prob:
            self._find_words()

    def __getitem__(self, key: BatchKey) -> Batch:
        epoch, ids, upcoming = key
        if self._cache.reads_ahead:
            self._cache.prefetch((self._cuts[name] for name in (*ids, *upcoming) if name not in self._unaugmented), self)
        utterances, left_out = self._read(epoch, ids)
        rows = [views[view] for view in range(self._views) for views in utterances.values()]
        features, lengths = stack_features([features for features, _ in rows])
        targets, target_lengths = stack_targets([self._target(reference) for _, reference in rows])
        return Batch(
            features=features,
            feature_lengths=lengths,
            targets=targets,
            target_lengths=target_lengths,
            ids=tuple(utterances) * self._views,
            texts=tuple(reference.text for _, reference in rows),
            seconds=float(lengths.sum()) / self._features.frame_rate,
            left_out=tuple(left_out),
        )

    @property
    def reads_ahead(self) -> bool:
        """Return whether it is of use to name the utterances of the next batches."""
        return self._cache.reads_ahead

    def _read(self, epoch: int, ids: Sequence[str]) -> tuple[dict[str, list[tuple[torch.Tensor, Reference]]], list[tuple[str, str]]]:
        """Return the features and the reference of each view of the readable utterances, and (id, reason) of the others.

        Where none of them can be read, the first utterance of the split that can takes their place.

        Raises:
            DataError: an utterance cannot be read and this is not lenient, or none of the split can.
        """
        readable: dict[str, list[tuple[torch.Tensor, Reference]]] = {}
        left_out: list[tuple[str, str]] = []
        for utterance in itertools.chain(ids, self._cuts):
            if readable and len(readable) + len(left_out) >= len(ids):
                break
            try:
                readable[utterance] = [self._view(self._cuts[utterance], epoch, view) for view in range(self._views)]
            except DataError as error:
                if not self._lenient:
                    raise
                left_out.append((utterance, str(error)))
        if not readable:
            name, reason = left_out[0]
            raise DataError(f"no utterance can be read; the first: {name}: {reason}")
        return readable, left_out[: len(ids)]

    def _view(self, cut: Cut, epoch: int, view: int) -> tuple[torch.Tensor, Reference]:
        """Return the features (T, F) of an utterance in one view, and its reference."""
        reference = Reference(cut.text, partial(self._cache.target, cut))
        if self._augment is None:
            return self._without_augmentation(cut), reference
        rng = self._augment.generator(self._seed, epoch, cut.id)
        words = self._augment.recombine(self._words.get(cut.id, ()), self._words_of_speaker.get(cut.speaker, ()), rng)
        if words is None:
            spectrum = self._augment.wave_spectrum(partial(self._cache.samples, cut), self._features, rng)
            return self._augment(self._cache.spectrum(cut) if spectrum is None else spectrum, self._features, rng, view), reference
        pieces = [self._cache.spectrum(self._cuts[word.utterance])[word.start : word.end] for word in words]
        return self._augment(torch.cat(pieces), self._features, rng, view), Reference(" ".join(word.text for word in words))

    def _without_augmentation(self, cut: Cut) -> torch.Tensor:
        """Return the features (T, F) of an utterance, stored in memory while the cache has room."""
        features = self._unaugmented.get(cut.id)
        if features is None:
            features = self._features.finish(self._features.mel(self._cache.spectrum(cut)))
            if self._cache.reserve(features.nbytes):
                self._unaugmented[cut.id] = features
        return features

    def _find_words(self) -> None:
        for cut in self._cuts.values():
            frames = self._features.num_frames(cut.samples_at(self._features.sample_rate))
            words = word_spans(cut.custom, cut.id, frames, self._features.frame_rate)
            self._words[cut.id] = words
            self._words_of_speaker.setdefault(cut.speaker, []).extend(words)
        if not any(self._words.values()):
            raise DataError(
                "augment.recombine_prob needs word times, and no utterance has any\n"
                "    -> give 'words' in the manifest, or set augment.recombine_prob=0"
            )


class Loader:
    """The batches of a split, divided anew each epoch.

    Args:
        cuts: the utterances of the split.
        builder: makes them into batches.
        limits: size limits of a batch.
        shuffle: take another order each epoch, as for training.
        seed: seed of the order.
        max_batches: use only the first ones of each epoch; None: all.
        num_workers: processes that build batches; 0: a thread of this one.

    Attributes:
        left_out: why an utterance could not be read, by its id.
    """

    def __init__(
        self,
        cuts: Sequence[Cut],
        builder: BatchBuilder,
        limits: Limits,
        *,
        shuffle: bool,
        seed: int,
        max_batches: int | None = None,
        num_workers: int = 0,
    ) -> None:
        self._ids = ids_of(cuts)
        self._durations = durations_of(cuts)
        self._builder = builder
        self._limits = limits
        self._shuffle = shuffle
        self._seed = seed
        self._max_batches = max_batches
        self._num_workers = num_workers
        self.left_out: dict[str, str] = {}
        self._rank, self._world_size = 0, 1
        self._epoch = 0
        self._done = 0
        self._planned_epoch = -1
        self._places: list[list[int]] = []
        self._count: int | None = None

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Choose the epoch whose order and augmentation come next, and how many of its batches were seen already and are not repeated."""
        self._epoch = epoch
        self._done = done

    def take_share(self, rank: int, world_size: int) -> None:
        """Make only one process's share of each batch, so that each utterance is in the share of one of `world_size` processes."""
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return len(self._plan())

    def batch_ids(self) -> list[list[str]]:
        """Return the ids of the utterances of each batch of the epoch, for all processes together."""
        return [[self._ids[place] for place in places] for places in self._plan()]

    def example(self) -> Batch:
        """Build a batch of one utterance, which shows the types and the fixed sizes of all batches."""
        return self._builder[BatchKey(0, [self._ids[self._plan()[0][0]]])]

    def largest(self) -> Batch:
        """Build the batch of the epoch with the most frames, padding counted, as far as durations tell."""
        places = max(self._plan(), key=lambda places: len(places) * self._durations[places].max())
        return self._builder[self._key(places)]

    def __iter__(self) -> Iterator[Batch]:
        plan = self._plan()[self._done :]
        keys = [self._key(places) for places in plan]
        if self._builder.reads_ahead:
            keys = _with_upcoming(keys, max(1, self._num_workers))
        if self._num_workers == 0:
            batches: Iterable[Batch | UserError] = _prefetch(self._builder, keys)
        else:
            batches = DataLoader(
                _ErrorsAsValues(self._builder),
                batch_size=None,
                sampler=keys,
                num_workers=self._num_workers,
                collate_fn=_identity,  # type: ignore[arg-type]
            )
        for places, (_, ids, _), batch in zip(plan, keys, batches, strict=True):
            if isinstance(batch, UserError):
                raise batch
            self._record(batch.left_out)
            # a batch of which nothing could be read holds another utterance: training needs all its steps, evaluation counts each once
            if self._shuffle or len(batch.left_out) < len(ids):
                yield batch._replace(is_filler=True) if len(places) <= self._rank else batch

    def _key(self, places: Sequence[int]) -> BatchKey:
        """Return the key of this process's share of a batch; a share without utterances gets the first one of the batch."""
        share = places[self._rank :: self._world_size] or places[:1]
        return BatchKey(self._epoch, [self._ids[place] for place in share])

    def _record(self, left_out: Sequence[tuple[str, str]]) -> None:
        for utterance, reason in left_out:
            if utterance not in self.left_out:
                self.left_out[utterance] = reason
                if len(self.left_out) <= _MAX_WARNINGS:
                    more = "; more will only be counted" if len(self.left_out) == _MAX_WARNINGS else ""
                    log.warning("%s: %s; it is left out (data.on_bad=skip)%s", utterance, reason, more)

    def _plan(self) -> list[list[int]]:
        """Return the places of the epoch's utterances, batch by batch, as many batches as in epoch 0."""
        epoch = self._epoch if self._shuffle else 0
        if epoch != self._planned_epoch:
            durations = self._durations.tolist()
            batches = self._divide(durations, epoch)
            if self._count is None:
                self._count = len(batches if epoch == 0 else self._divide(durations, 0))
            self._places = equalize_count(batches, durations, self._count)[: self._max_batches]
            self._planned_epoch = epoch
        return self._places

    def _divide(self, durations: Sequence[float], epoch: int) -> list[list[int]]:
        return epoch_batches(durations, self._limits, shuffle=self._shuffle, seed=self._seed, epoch=epoch)


class _ErrorsAsValues(Dataset[Batch | UserError]):
    """Returns the error of a batch in its place: raised in a worker process it would come back as the text of a stack trace."""

    def __init__(self, builder: BatchBuilder) -> None:
        self._builder = builder

    def __getitem__(self, key: BatchKey) -> Batch | UserError:
        try:
            return self._builder[key]
        except UserError as error:
            return error


def _with_upcoming(keys: Sequence[BatchKey], builders: int) -> list[BatchKey]:
    """Add to the key of each batch what its builder, of several that take turns, builds next."""
    following = [keys[number + builders : number + builders * _AHEAD + 1 : builders] for number in range(len(keys))]
    return [key._replace(upcoming=[name for each in more for name in each.ids]) for key, more in zip(keys, following, strict=True)]


def _prefetch(builder: BatchBuilder, keys: Sequence[BatchKey]) -> Iterator[Batch]:
    """Yield the batches in order, each built by a thread while those before it are used."""
    pool = ThreadPoolExecutor(1, "batches")
    pending: deque[Future[Batch]] = deque()
    try:
        for key in keys:
            pending.append(pool.submit(builder.__getitem__, key))
            if len(pending) > _PREFETCHED:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _identity(batch: Batch) -> Batch:
    return batch
