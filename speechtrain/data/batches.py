"""Batches: the only thing a backend sees of the data.

    features (B, T, F) float32, zero-padded · feature_lengths (B,) · targets (B, L) or (B, L, C), zero-padded · target_lengths (B,) · ids

Both backends read the same batches. Everything random follows from (seed, epoch, utterance), so neither the number of worker
processes nor an interruption changes what is read.
"""

from __future__ import annotations

import itertools
import logging
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset

from speechtrain.console import console
from speechtrain.data.augment import Augment, Word, words_of
from speechtrain.data.corpus import Corpus, Cut, Skip
from speechtrain.data.features import Features
from speechtrain.data.plan import BUFFER, Limits, divided, sampled
from speechtrain.data.store import SpectrumStore, key_of
from speechtrain.errors import DataError

log = logging.getLogger(__name__)

T = TypeVar("T", torch.Tensor, npt.NDArray[np.float32])


class Batch(NamedTuple):
    """Utterances that are computed together.

    Attributes:
        features: (B, T, F) float32, zero behind each utterance's end.
        feature_lengths: (B,) int64, frames.
        targets: what the task wants, zero behind each one's end: labels (B, L) int64, or frames (B, L, C) float32.
        target_lengths: (B,) int64.
        ids: of the utterances.
        texts: references as written in the corpus.
        seconds: of audio, padding not counted.
        left_out: (id, reason) of utterances that belong here and cannot be read.
        stands_in: whether it is only there so that each of several processes has a batch, and counts for nothing.
    """

    features: npt.NDArray[np.float32]
    feature_lengths: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    target_lengths: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    seconds: float
    left_out: tuple[tuple[str, str], ...] = ()
    stands_in: bool = False


Target = npt.NDArray[np.int64] | npt.NDArray[np.float32]


class Reference(NamedTuple):
    """What a corpus says of an utterance; the task makes a target of it.

    Attributes:
        text: "" where there is none.
        signal: gives the frames (T, C) that are wanted, where the corpus has them.
    """

    text: str
    signal: Callable[[], npt.NDArray[np.float32]] | None = None


def without_references(items: Sequence[torch.Tensor], frame_rate: float, placeholder: Callable[[int], Target]) -> Batch:
    """Utterances of features (T, F) of which it is not known what is wanted.

    Args:
        items: at least one.
        frame_rate: of the features, frames a second.
        placeholder: the task's, so that a loss can be computed.
    """
    lengths = np.array([len(item) for item in items], dtype=np.int64)
    features = np.zeros((len(items), int(lengths.max()), items[0].shape[1]), dtype=np.float32)
    for row, item in enumerate(items):
        features[row, : lengths[row]] = item.numpy()
    targets, target_lengths = stacked([placeholder(int(length)) for length in lengths])
    return Batch(
        features=features,
        feature_lengths=lengths,
        targets=targets,
        target_lengths=target_lengths,
        ids=tuple(str(row) for row in range(len(items))),
        texts=("",) * len(items),
        seconds=float(lengths.sum()) / frame_rate,
    )


def stacked(wanted: Sequence[Target]) -> tuple[Target, npt.NDArray[np.int64]]:
    """Targets of several utterances in one array, zero behind each one's end, and their lengths (B,)."""
    lengths = np.array([len(item) for item in wanted], dtype=np.int64)
    targets = np.zeros((len(wanted), max(1, int(lengths.max())), *wanted[0].shape[1:]), dtype=wanted[0].dtype)
    for row, item in enumerate(wanted):
        targets[row, : lengths[row]] = item
    return targets, lengths


def silence(features: Features, placeholder: Callable[[int], Target], *, seconds: float) -> Batch:
    """One utterance of features at rest, to measure a model with."""
    frames = features.num_frames(round(seconds * features.sample_rate))
    return without_references([torch.zeros(frames, features.size, dtype=torch.float32)], features.frame_rate, placeholder)


class SpectrumCache:
    """Spectra (T, K) of all utterances as half-precision magnitudes, and the signals that are wanted, as far as they fit.

    What does not fit is read again when it is needed; what a store on disk has needs no room.

    Args:
        corpus: reads.
        features: that spectra are computed for.
        gigabytes: of memory.
        store: on disk; None: there is none.
        lenient: whether a batch goes without the utterances that cannot be read; for a corpus that was not read before.

    Attributes:
        checksums: of what was read of each utterance, by id.
    """

    def __init__(
        self, corpus: Corpus, features: Features, gigabytes: float, store: SpectrumStore | None = None, *, lenient: bool = False
    ) -> None:
        self.lenient = lenient
        self._store = store if corpus.target is None else None
        self._corpus = corpus
        self._features = features
        self._room = gigabytes * 1e9
        self._counting = threading.Lock()
        self._kept: dict[str, torch.Tensor] = {}
        self._targets: dict[str, npt.NDArray[np.float32]] = {}
        self.checksums: dict[str, int] = {}

    def fill(self, cuts: Sequence[Cut], threads: int) -> dict[str, str]:
        """Read everything once. Returns what is wrong with the utterances that cannot be used, by id."""
        bad: dict[str, str] = {}
        if self._store is not None:
            cuts = self._fill_from_store(cuts, self._store, threads)

        def read(cut: Cut) -> tuple[str, torch.Tensor | str]:
            try:
                return cut.id, self._compute(cut)
            except DataError as error:
                return cut.id, str(error)

        with _bar("reading audio", len(cuts)) as advance, ThreadPoolExecutor(threads) as pool:
            done, together = 0, 1  # one by one until one is good: features that learn their size from what is read learn it from that
            while done < len(cuts):
                for utterance, found in pool.map(read, cuts[done : done + together]):
                    done += 1
                    if isinstance(found, str):
                        bad[utterance] = found
                    else:
                        together = 256
                        self._keep(self._kept, utterance, found)
                    advance()
        return bad

    def _fill_from_store(self, cuts: Sequence[Cut], store: SpectrumStore, threads: int) -> Sequence[Cut]:
        """Take what the store has, and let it have what it lacks. Returns the cuts that it cannot keep, bad ones among them."""
        with ThreadPoolExecutor(threads) as pool:
            keys = {cut.id: key for cut, key in zip(cuts, pool.map(_key, cuts), strict=True) if key is not None}
            missing = [cut for cut in cuts if cut.id in keys and store.get(keys[cut.id]) is None]
            if missing:
                try:
                    with store.filling() as writer, _bar("reading audio", len(missing)) as advance:
                        missing = [cut for cut in missing if store.get(keys[cut.id]) is None]  # another run may have been at work
                        for begin in range(0, len(missing), 256):
                            some = missing[begin : begin + 256]
                            for cut, packed in zip(some, pool.map(self._try, some), strict=True):
                                advance()
                                if packed is not None:
                                    writer.add(keys[cut.id], packed, self.checksums[cut.id])
                except OSError as error:
                    log.warning("data.feature_cache cannot be written (%s); features are kept in memory", error)
        left = []
        for cut in cuts:
            found = store.get(keys[cut.id]) if cut.id in keys else None
            if found is None:
                left.append(cut)
            else:
                self._kept[cut.id] = found.packed
                self.checksums[cut.id] = found.checksum
        return left

    def _try(self, cut: Cut) -> torch.Tensor | None:
        try:
            return self._compute(cut)
        except DataError:
            return None  # told when it is read again

    def get(self, cut: Cut) -> torch.Tensor:
        """The power spectrum (T, K)."""
        kept = self._kept.get(cut.id)
        return self._features.unpack(kept if kept is not None else self._compute(cut))

    def samples(self, cut: Cut) -> npt.NDArray[np.float32]:
        """The waveform (N,) that the spectrum is of."""
        return self._corpus.read(cut, self._features.sample_rate)

    def target(self, cut: Cut) -> npt.NDArray[np.float32]:
        """The signal (T, C) that is wanted."""
        assert self._corpus.target is not None
        kept = self._targets.get(cut.id)
        return kept if kept is not None else self._corpus.target(cut)

    def room_for(self, found: torch.Tensor) -> bool:
        """Take the room that something else needs, if there is as much."""
        with self._counting:
            enough = found.nbytes <= self._room
            self._room -= found.nbytes if enough else 0
        return enough

    def _compute(self, cut: Cut) -> torch.Tensor:
        samples = self._corpus.read(cut, self._features.sample_rate)
        if cut.id not in self.checksums:
            check = zlib.crc32(samples.tobytes())
            if self._corpus.target is not None:
                wanted = self._corpus.target(cut)
                check = zlib.crc32(wanted.tobytes(), check)
                self._keep(self._targets, cut.id, wanted)
            self.checksums[cut.id] = check
        return self._features.pack(self._features.spectrum(samples))

    def _keep(self, where: dict[str, T], utterance: str, found: T) -> None:
        with self._counting:
            if found.nbytes <= self._room:
                self._room -= found.nbytes
                where[utterance] = found


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


def _key(cut: Cut) -> str | None:
    """Of the file that a cut is a part of; None: it is of none, or of one that is more than read."""
    if cut.path is None or cut.recording is not None:
        return None
    try:
        return key_of(Path(cut.path), cut.channel, cut.start, cut.duration)
    except OSError:
        return None


_TOLD = 10  # utterances that are left out while training, which are named


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


def read_all(
    corpus: Corpus, features: Features, *, gigabytes: float, threads: int, store: SpectrumStore | None = None
) -> tuple[SpectrumCache, list[Skip]]:
    """Decode every utterance once: what is bad is dropped from the corpus and returned, what is good is kept on disk or in memory.

    Args:
        corpus: its splits are changed.
        features: that spectra are computed for.
        gigabytes: of memory.
        threads: that decode.
        store: on disk; None: there is none.
    """
    cache = SpectrumCache(corpus, features, gigabytes, store)
    skipped = []
    for name, cuts in corpus.splits.items():
        bad = cache.fill(list(cuts), threads)
        skipped += [Skip(name, utterance, reason) for utterance, reason in bad.items()]
        if bad:
            corpus.splits[name] = keep(cuts, lambda cut, bad=bad: cut.id not in bad)  # type: ignore[misc]
    return cache, skipped


def keep(cuts: list[Cut], wanted: Callable[[Cut], bool]) -> list[Cut]:
    """The cuts that are wanted."""
    return [cut for cut in cuts if wanted(cut)]
