"""Power spectra of utterances, kept in memory or in a store on disk, so that each recording is decoded once."""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress

from speechtrain.console import console
from speechtrain.data.corpus import Corpus, Cut, Skip, keep
from speechtrain.data.features.features import Features
from speechtrain.data.features.store import SpectrumStore, key_of
from speechtrain.errors import DataError

log = logging.getLogger(__name__)

T = TypeVar("T", torch.Tensor, npt.NDArray[np.float32])


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


def _key(cut: Cut) -> str | None:
    """Of the file that a cut is a part of; None: it is of none, or of one that is more than read."""
    if cut.path is None or cut.recording is not None:
        return None
    try:
        return key_of(Path(cut.path), cut.channel, cut.start, cut.duration)
    except OSError:
        return None


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
