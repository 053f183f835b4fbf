"""From the config's data groups to loaders: the data room from end to end."""

from __future__ import annotations

import gc
import hashlib
import itertools
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speechtrain.config.build import build
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.data.audio import Audio
from speechtrain.data.batches import Reference, Target
from speechtrain.data.batching import Limits
from speechtrain.data.checks import report_shared
from speechtrain.data.corpus import SPLITS, Corpus, CorpusSource, Cut, Skip, keep, report_skips, seconds
from speechtrain.data.features.augment import Augment
from speechtrain.data.features.cache import SpectrumCache, read_all
from speechtrain.data.features.features import Features
from speechtrain.data.features.store import SpectrumStore
from speechtrain.data.loader import Loader, Utterances
from speechtrain.data.splits import split_fold
from speechtrain.data.text.normalize import normalizer
from speechtrain.data.text.tokenizers import Tokenizer, count_repeats
from speechtrain.errors import ConfigError, DataError, EmptyDataError, Problem

log = logging.getLogger(__name__)


@dataclass
class Data:
    """A corpus that has been read and checked.

    Attributes:
        corpus: usable utterances.
        skipped: how many were left out as bad.
        infeasible: how many training utterances the model cannot learn; set by `without_infeasible`.
        target: what the task makes of an utterance; set as soon as there is a task, before the first loader.
    """

    corpus: Corpus
    cache: SpectrumCache
    features: Features
    tokenizer: Tokenizer
    augment: Augment
    limits: Limits
    seed: int
    skipped: int
    infeasible: int = 0
    target: Callable[[Reference], Target] | None = None

    def loader(
        self, split: str, *, shuffle: bool = False, augment: bool = False, views: int = 1, max_batches: int | None = None
    ) -> Loader | None:
        """The batches of a split; None if it is empty."""
        cuts = self.corpus.splits[split]
        if len(cuts) == 0:
            return None
        dataset = self._utterances(cuts, self.augment if augment else None, views)
        return Loader(cuts, dataset, self.limits, shuffle=shuffle, seed=self.seed, max_batches=max_batches)

    def only(self, split: str, ids: Collection[str], *, augment: bool = False) -> Loader:
        """The batches of some utterances of a split, as they are for evaluation or as the first epoch would augment them."""
        cuts = keep(self.corpus.splits[split], lambda cut: cut.id in ids)
        known = self.corpus.splits[split] if augment and self.augment.recombine_prob else cuts
        return Loader(cuts, self._utterances(known, self.augment if augment else None), self.limits, shuffle=False, seed=self.seed)

    def _utterances(self, cuts: list[Cut], augment: Augment | None, views: int = 1) -> Utterances:
        assert self.target is not None, "a task comes first"
        return Utterances(cuts, self.cache, self.features, self.target, augment, self.seed, views)

    def example_samples(self) -> Audio:
        """The samples (N,) of an utterance, of the test data if there are any.

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
        """How much there is of a split."""
        cuts = self.corpus.splits[split]
        speakers = {cut.speaker for cut in cuts} - {None}
        return {
            "utterances": float(len(cuts)),
            "hours": seconds(cuts) / 3600,
            "speakers": float(len(speakers)),
            "words": float(sum(len(cut.text.split()) for cut in cuts)),
        }

    def fingerprint(self, split: str) -> str:
        """Of the utterances of a split, whatever their order: names, texts, speakers and samples."""
        digest = hashlib.blake2b(digest_size=16)
        for cut in sorted(self.corpus.splits[split], key=lambda cut: str(cut.id)):
            check = self.cache.checksums.get(cut.id, 0)
            digest.update(f"{cut.id}\t{cut.text}\t{cut.speaker}\t{check}\n".encode())
        return digest.hexdigest()

    def frames(self, cut: Cut) -> int:
        """T of an utterance."""
        return self.features.num_frames(round(cut.duration * self.features.sample_rate))


_KEPT = 2
_read: OrderedDict[str, tuple[Corpus, SpectrumCache, Features, list[Skip]]] = OrderedDict()
"""Corpora that this process has read, for the next trial of a sweep."""


def prepare_split(cfg: ExperimentConfig, split: str, tokenizer: Tokenizer, *, threads: int) -> Data:
    """Load, check and read one split of a corpus, for a model that is trained already.

    Raises:
        ConfigError: the corpus has no utterances there.
        DataError: something is bad and `data.on_bad=error`, or nothing is left.
    """
    corpus, cache, features, skipped = _read_corpus(cfg, threads=threads, reuse=False, only=split)
    report_skips(skipped, cfg.data.on_bad)
    if len(corpus.splits[split]) == 0:
        if skipped:
            raise DataError(f"no utterance of {split} is left ({len(skipped)} were bad)\n    -> look at the warnings above")
        fix = "choose another split, or name its list: for example data.test=FILE"
        raise ConfigError([Problem("split", f"the data has no utterances for {split}", fix)])
    return Data(corpus, cache, features, tokenizer, build("augment", cfg.augment), _limits(cfg), cfg.seed, len(skipped))


def prepare(cfg: ExperimentConfig, *, threads: int, reuse: bool = False) -> Data:
    """Load, check and read the corpus; build the tokenizer from its training texts.

    Args:
        cfg: composed.
        threads: that decode.
        reuse: take a corpus that this process has read before for the same `data` and `features`, and keep this one: the trials of a
            sweep see the data as they were when it began.

    Raises:
        EmptyDataError: nothing is left to train on, and `data.on_empty=warn`.
        DataError: nothing is left to train on, or something is bad and `data.on_bad=error`.
    """
    corpus, cache, features, skipped = _read_corpus(cfg, threads=threads, reuse=reuse)
    if cfg.data.folds is not None and cfg.data.fold is not None:
        pool = [*corpus.splits["train"], *corpus.splits["val"]]
        train_cuts, val_cuts = split_fold(pool, cfg.data.fold_by, cfg.data.folds, cfg.data.fold)
        corpus.splits |= {"train": train_cuts, "val": val_cuts}
    tokenizer: Tokenizer | None = None
    if len(corpus.splits["train"]):
        tokenizer = build("tokenizer", cfg.tokenizer, texts=[cut.text for cut in corpus.splits["train"]])
        assert tokenizer is not None
        skipped = [*skipped, *_without_labels(corpus, tokenizer)]
    report_skips(skipped, cfg.data.on_bad)
    if tokenizer is None or len(corpus.splits["train"]) == 0:
        kind = EmptyDataError if cfg.data.on_empty == "warn" else DataError
        raise kind(f"no utterance is left to train on ({len(skipped)} were bad)\n    -> look at the warnings above")
    _report_unknown(corpus, tokenizer)
    report_shared(corpus, cache.checksums, asdict(cfg.data.on_shared))
    for name in SPLITS:
        cuts = corpus.splits[name]
        if len(cuts):
            speakers = len({cut.speaker for cut in cuts} - {None})
            log.info("%-5s %6d utterances  %7.2f h  %s", name, len(cuts), seconds(cuts) / 3600, f"{speakers} speakers" if speakers else "")
    return Data(corpus, cache, features, tokenizer, build("augment", cfg.augment), _limits(cfg), cfg.seed, len(skipped))


def _limits(cfg: ExperimentConfig) -> Limits:
    return Limits(cfg.data.batch_seconds, cfg.data.batch_size, cfg.data.num_buckets, cfg.data.num_workers)


def _read_corpus(
    cfg: ExperimentConfig, *, threads: int, reuse: bool, only: str | None = None
) -> tuple[Corpus, SpectrumCache, Features, list[Skip]]:
    key = repr((replace(cfg.data, fold=None), cfg.corpus, cfg.features))  # every fold is made of the same corpus
    if reuse and key in _read:
        _read.move_to_end(key)
    else:
        source: CorpusSource = build("data", cfg.corpus)
        with _without_collections():
            corpus = source.load(cfg.data.limit_utterances)
            if only is not None:
                corpus.splits = {name: cuts if name == only else [] for name, cuts in corpus.splits.items()}
                corpus.skipped = [skip for skip in corpus.skipped if skip.split == only]
            _normalize(corpus, cfg.data.normalize)
        for name in SPLITS:
            corpus.splits[name] = _within_durations(corpus, name, cfg.data.min_duration, cfg.data.max_duration)
        features: Features = build("features", cfg.features)
        store = _store(cfg, features, corpus)
        hours = sum(seconds(cuts) for cuts in corpus.splits.values()) / 3600
        unreadable: list[Skip] = []
        # features that are stored tell their size when they are read, and signals are small
        if hours <= cfg.data.check_hours or not features.hears or corpus.target is not None:
            cache, unreadable = read_all(corpus, features, gigabytes=cfg.data.cache_gb, threads=threads, store=store)
        else:
            log.info(
                "%.0f h are more than data.check_hours=%g: audio is read while training, and what is bad is found then",
                *(hours, cfg.data.check_hours),
            )
            cache = SpectrumCache(corpus, features, 0.0, lenient=cfg.data.on_bad == "skip")
        found = corpus, cache, features, [*corpus.skipped, *unreadable]
        if not reuse:
            return found
        _read[key] = found
        while len(_read) > _KEPT:
            _read.popitem(last=False)
    corpus, cache, features, skipped = _read[key]
    return replace(corpus, splits=dict(corpus.splits)), cache, features, skipped  # a run leaves utterances out of its own splits


@contextmanager
def _without_collections() -> Iterator[None]:
    """While many small objects are made that all stay, looking for garbage among them is a third of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _store(cfg: ExperimentConfig, features: Features, corpus: Corpus) -> SpectrumStore | None:
    """Where spectra are kept on disk, for audio that comes from files of its own."""
    identity = getattr(features, "identity", None)
    if cfg.data.feature_cache is None or identity is None or not corpus.from_files:
        return None
    try:
        return SpectrumStore(Path(cfg.data.feature_cache), identity, cfg.data.feature_cache_gb)
    except OSError as error:
        log.warning("data.feature_cache=%s cannot be written (%s); features are kept in memory", cfg.data.feature_cache, error.strerror)
        return None


def without_infeasible(
    data: Data,
    output_lengths: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]],
    infeasible: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.bool_]],
    on_infeasible: str,
) -> None:
    """Find the training utterances with too few encoder frames for their text; leave them out, refuse them or keep them.

    Raises:
        DataError: with `on_infeasible="error"` and any found, or if none is left.
    """
    cuts = list(data.corpus.splits["train"])
    bad = find_infeasible(data, cuts, output_lengths, infeasible)
    data.infeasible = len(bad)
    if not bad:
        return
    shown = ", ".join(f"{utterance} ({have} frames, needs {need})" for utterance, have, need in bad[:8])
    text = f"{data.infeasible} of {len(cuts)} training utterances are too short for their text at this subsampling: {shown}" + (
        f" and {len(bad) - 8} more" if len(bad) > 8 else ""
    )
    fix = "a model with less subsampling, or task.on_infeasible=skip"
    if on_infeasible == "error":
        raise DataError(f"{text}\n    -> {fix}")
    if data.infeasible == len(cuts):
        raise DataError(f"{text}\n    -> choose a model with less subsampling")
    log.warning("%s; %s", text, "they are left out (task.on_infeasible=skip)" if on_infeasible == "skip" else "they count as loss 0")
    if on_infeasible == "skip":
        gone = {utterance for utterance, _, _ in bad}
        data.corpus.splits["train"] = keep(data.corpus.splits["train"], lambda cut: cut.id not in gone)


def find_infeasible(
    data: Data,
    cuts: Sequence[Cut],
    output_lengths: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]],
    infeasible: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.bool_]],
) -> list[tuple[str, int, int]]:
    """Id, encoder frames and needed frames of the utterances with too few of them for their text."""
    assert data.target is not None, "a task comes first"
    sizes, repeats = np.zeros((2, len(cuts)), dtype=np.int64)
    for index, cut in enumerate(cuts):
        labels = data.target(Reference(cut.text))
        sizes[index], repeats[index] = len(labels), count_repeats(labels)
    lengths = output_lengths(np.array([data.frames(cut) for cut in cuts], dtype=np.int64))
    found = infeasible(lengths, sizes, repeats)
    return [(str(cuts[int(index)].id), int(lengths[index]), int(sizes[index] + repeats[index])) for index in np.flatnonzero(found)]


def _normalize(corpus: Corpus, steps: Sequence[str]) -> None:
    """Bring every transcript into its final form; what has no text left is skipped."""
    normalize = normalizer(steps)
    changed: list[tuple[str, str]] = []
    for split, cuts in corpus.splits.items():
        empty = set()
        for cut in cuts:
            text = cut.text
            cut.text = normalize(text)
            if text != cut.text and len(changed) < _EXAMPLES:
                changed.append((text, cut.text))
            if text and not cut.text:
                empty.add(cut.id)
                corpus.skipped.append(Skip(split, cut.id, f"nothing is left of its text {text[:40]!r} by data.normalize"))
        if empty:
            corpus.splits[split] = keep(cuts, lambda cut, empty=empty: cut.id not in empty)  # type: ignore[misc]
    same = [(cut.text, cut.text) for cut in list(corpus.splits["train"])[:_EXAMPLES]]
    corpus.normalized = (changed + same)[:_EXAMPLES]


_EXAMPLES = 10  # texts that show what `data.normalize` does


def _within_durations(corpus: Corpus, split: str, shortest: float, longest: float | None):  # type: ignore[no-untyped-def]
    cuts = corpus.splits[split]
    out = [cut for cut in cuts if cut.duration < shortest or (longest is not None and cut.duration > longest)]
    corpus.skipped += [
        Skip(split, cut.id, f"lasts {cut.duration:.2f} s, outside data.min_duration={shortest} and data.max_duration={longest}")
        for cut in out
    ]
    gone = {cut.id for cut in out}
    return keep(cuts, lambda cut: cut.id not in gone) if out else cuts


def _without_labels(corpus: Corpus, tokenizer: Tokenizer) -> list[Skip]:
    """Leave out training utterances of which the tokenizer cannot say all: their labels would be wrong."""
    unknown = {cut.id: found for cut in corpus.splits["train"] if (found := tokenizer.unknown(cut.text))}
    if unknown:
        corpus.splits["train"] = keep(corpus.splits["train"], lambda cut: cut.id not in unknown)
    return [Skip("train", name, f"the tokenizer has nothing for {', '.join(map(repr, found[:8]))}") for name, found in unknown.items()]


def _report_unknown(corpus: Corpus, tokenizer: Tokenizer) -> None:
    for name in ("val", "test"):
        unknown = Counter(token for cut in corpus.splits[name] for token in tokenizer.unknown(cut.text))
        if unknown:
            shown = ", ".join(f"{token!r} ({count}x)" for token, count in unknown.most_common(10))
            log.warning("%s holds tokens that the training text does not, so they cannot be recognised: %s", name, shown)
