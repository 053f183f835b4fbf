"""Spectra of utterances, kept in memory or in a store on disk, so that each recording is decoded once."""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from speechtrain.console import progress_bar
from speechtrain.data.corpus import Corpus, Cut, Skip
from speechtrain.data.cut_table import without
from speechtrain.data.features.features import Features
from speechtrain.data.features.store import SpectrumStore, content_of, key_of
from speechtrain.errors import DataError

log = logging.getLogger(__name__)

_READ_TOGETHER = 256  # utterances that the threads have before them

T = TypeVar("T", torch.Tensor, npt.NDArray[np.float32])


class SpectrumCache:
    """Spectra (T, K) of a corpus' utterances in half the memory, and its target signals, as far as they fit.

    What does not fit is read again whenever it is needed; what a store on disk holds takes no memory.

    Args:
        corpus: reads samples and signals.
        features: computes spectra.
        gigabytes: memory to fill at most, GB.
        store: the store of spectra on disk; None if there is none.

    Attributes:
        silent: ids of utterances whose samples are all zero.
        checksums: CRC-32 of the samples, and of the signal, of each utterance that was read, by id.
    """

    def __init__(self, corpus: Corpus, features: Features, gigabytes: float, store: SpectrumStore | None = None) -> None:
        self._store = store if corpus.target is None else None
        self._corpus = corpus
        self._features = features
        self._free_bytes = gigabytes * 1e9
        self._lock = threading.Lock()
        self._packed: dict[str, torch.Tensor] = {}
        self._targets: dict[str, npt.NDArray[np.float32]] = {}
        self.checksums: dict[str, int] = {}
        self.silent: list[str] = []

    def fill(self, cuts: Sequence[Cut], threads: int) -> dict[str, str]:
        """Read every utterance once. Returns why some of them cannot be used, by id."""
        errors: dict[str, str] = {}
        if self._store is not None:
            cuts = self._fill_from_store(cuts, self._store, threads)

        def read(cut: Cut) -> tuple[str, torch.Tensor | str]:
            try:
                return cut.id, self._read(cut)
            except DataError as error:
                return cut.id, str(error)

        with progress_bar("reading audio", len(cuts)) as advance, ThreadPoolExecutor(threads) as pool:
            done, together = 0, 1  # one by one until one is good: features that learn their size from what is read learn it from that
            while done < len(cuts):
                self.prefetch(cuts[done : done + together], self)
                for utterance, result in pool.map(read, cuts[done : done + together]):
                    done += 1
                    if isinstance(result, str):
                        errors[utterance] = result
                    else:
                        together = _READ_TOGETHER
                        self._note_silence(utterance, result)
                        self._add(self._packed, utterance, result)
                    advance(1)
        return errors

    def _fill_from_store(self, cuts: Sequence[Cut], store: SpectrumStore, threads: int) -> Sequence[Cut]:
        """Take what the store has, and add to it what it lacks. Returns the utterances that it cannot hold, unreadable ones among them."""
        with ThreadPoolExecutor(threads) as pool:
            keys = _store_keys(cuts, pool)
            missing = [cut for cut in cuts if cut.id in keys and store.get(keys[cut.id]) is None]
            if missing:
                try:
                    self._add_to_store(missing, keys, store, pool)
                except OSError as error:
                    log.warning("data.feature_cache cannot be written (%s); features are kept in memory", error)
        unstored = []
        for cut in cuts:
            stored = store.get(keys[cut.id]) if cut.id in keys else None
            if stored is None:
                unstored.append(cut)
            else:
                self._packed[cut.id] = stored.packed
                self._note_silence(cut.id, stored.packed)
                self.checksums[cut.id] = stored.checksum
        return unstored

    def _add_to_store(self, cuts: Sequence[Cut], keys: dict[str, str], store: SpectrumStore, pool: ThreadPoolExecutor) -> None:
        with store.writing() as writer, progress_bar("reading audio", len(cuts)) as advance:
            cuts = [cut for cut in cuts if store.get(keys[cut.id]) is None]  # another run may have been at work
            for begin in range(0, len(cuts), _READ_TOGETHER):
                some = cuts[begin : begin + _READ_TOGETHER]
                for cut, packed in zip(some, pool.map(self._read_or_none, some), strict=True):
                    advance(1)
                    if packed is not None:
                        writer.add(keys[cut.id], packed, self.checksums[cut.id])

    def _read_or_none(self, cut: Cut) -> torch.Tensor | None:
        try:
            return self._read(cut)
        except DataError:
            return None  # reported when it is read again, into memory

    def spectrum(self, cut: Cut) -> torch.Tensor:
        """Return the spectrum (T, K) of an utterance, in memory that the caller may write to.

        Raises:
            DataError: it is read now, and cannot be.
        """
        packed = self._packed.get(cut.id)
        return self._features.unpack(packed if packed is not None else self._read(cut))

    @property
    def reads_ahead(self) -> bool:
        """Return whether it is of use to know which utterances are asked for next."""
        return self._corpus.prefetch is not None

    def prefetch(self, cuts: Iterable[Cut], owner: object) -> None:
        """Have the recordings fetched of those utterances, which `owner` reads next, that are not kept."""
        if self._corpus.prefetch is not None:
            self._corpus.prefetch([cut for cut in cuts if cut.id not in self._packed], owner)

    def samples(self, cut: Cut) -> npt.NDArray[np.float32]:
        """Read the waveform (N,) of an utterance, at the features' rate."""
        return self._corpus.read(cut, self._features.sample_rate)

    def target(self, cut: Cut) -> npt.NDArray[np.float32]:
        """Return the target signal (T, C) of an utterance, in a corpus that has signals."""
        assert self._corpus.target is not None
        signal = self._targets.get(cut.id)
        return signal if signal is not None else self._corpus.target(cut)

    def reserve(self, size: int) -> bool:
        """Give away `size` bytes of the memory, if as much is free. Returns whether it was."""
        with self._lock:
            enough = size <= self._free_bytes
            self._free_bytes -= size if enough else 0
        return enough

    def _read(self, cut: Cut) -> torch.Tensor:
        """Compute an utterance's packed spectrum; the first time its checksum too."""
        samples = self._corpus.read(cut, self._features.sample_rate)
        if cut.id not in self.checksums:
            checksum = zlib.crc32(samples.tobytes())
            if self._corpus.target is not None:
                signal = self._corpus.target(cut)
                checksum = zlib.crc32(signal.tobytes(), checksum)
                self._add(self._targets, cut.id, signal)
            self.checksums[cut.id] = checksum
        return self._features.pack(self._features.spectrum(samples))

    def _note_silence(self, utterance: str, packed: torch.Tensor) -> None:
        if self._features.from_audio and not packed[:1].any() and not packed.any():  # most recordings are told by their first frame
            self.silent.append(utterance)

    def _add(self, values: dict[str, T], utterance: str, value: T) -> None:
        if self.reserve(value.nbytes):
            values[utterance] = value


def _store_keys(cuts: Sequence[Cut], pool: ThreadPoolExecutor) -> dict[str, str]:
    """Return the keys in a store, by id, of utterances that are simply parts of files that can be read."""
    of_files = [cut for cut in cuts if cut.path is not None and cut.recording is None]
    paths = list(dict.fromkeys(str(cut.path) for cut in of_files))  # parts of one file share its digest
    contents = dict(zip(paths, pool.map(_content_or_none, paths), strict=True))
    return {
        cut.id: key_of(content, cut.channel, cut.start, cut.duration)
        for cut in of_files
        if (content := contents[str(cut.path)]) is not None
    }


def _content_or_none(path: str) -> str | None:
    try:
        return content_of(Path(path))
    except OSError:
        return None


def read_all(
    corpus: Corpus, features: Features, *, gigabytes: float, threads: int, store: SpectrumStore | None = None
) -> tuple[SpectrumCache, list[Skip]]:
    """Decode every utterance of a corpus once, and drop from its splits those that cannot be used.

    Args:
        corpus: its splits are changed.
        features: compute spectra.
        gigabytes: memory to fill at most, GB.
        threads: number of threads that decode.
        store: the store of spectra on disk; None if there is none.

    Returns:
        The filled cache, and the utterances that were dropped.
    """
    cache = SpectrumCache(corpus, features, gigabytes, store)
    skipped = []
    for name, cuts in corpus.splits.items():
        errors = cache.fill(list(cuts), threads)
        skipped += [Skip(name, utterance, reason) for utterance, reason in errors.items()]
        if errors:
            corpus.splits[name] = without(cuts, [place for place, cut in enumerate(cuts) if cut.id in errors])
    texts = {cut.id: cut.text for cuts in corpus.splits.values() for cut in cuts} if cache.silent else {}
    if silent := [utterance for utterance in cache.silent if texts[utterance]]:
        examples = ", ".join(f"{utterance} ({texts[utterance][:40]!r})" for utterance in silent[:3])
        log.warning("%d utterances have a text, and all their samples are zero: %s", len(silent), examples)
    return cache, skipped
