"""From the config's data groups to a prepared corpus: read, normalise, check, divide into folds, build the tokenizer.

The steps of one recording are in `features/cache.py`, those of one batch in `loader.py`.
"""

from __future__ import annotations

import gc
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from speechtrain.config.build import build
from speechtrain.config.components import MIXES
from speechtrain.config.experiment import Component, ExperimentConfig, class_name
from speechtrain.config.overlay import has_own_list
from speechtrain.data.batching import Limits
from speechtrain.data.checks import report_shared
from speechtrain.data.corpus import SPLITS, Corpus, CorpusSource, Cut, Skip, report_skips
from speechtrain.data.cut_table import (
    Columns,
    CutTable,
    distinct_speakers,
    durations_of,
    joined,
    mixed_down,
    seconds,
    spoken,
    take,
    texts_of,
    with_channel,
    with_texts,
    without,
)
from speechtrain.data.features.cache import SpectrumCache, read_all
from speechtrain.data.features.features import Features
from speechtrain.data.features.store import SpectrumStore
from speechtrain.data.splits import limit_cuts, refuse_repeated_ids, split_fold
from speechtrain.data.table_cache import KeepsTables, TableCache
from speechtrain.data.task_data import PreparedCorpus
from speechtrain.data.text.base import Tokenizer, build_tokenizer
from speechtrain.data.text.normalize import changes_nothing, normalizer
from speechtrain.data.text.tokenizers import case_step, in_other_case
from speechtrain.errors import ConfigError, DataError, EmptyDataError, Problem, counted

log = logging.getLogger(__name__)

_MOST_CORPORA = 2  # that a process remembers
_NORMALIZED_EXAMPLES = 10  # texts that show what `data.normalize` does


@dataclass(frozen=True)
class _ReadCorpus:
    """What reading a corpus gives; the trials of a sweep share it.

    Attributes:
        skipped: utterances left out so far.
        lenient: whether what turns out to be unreadable later is left out, because not every recording was read.
    """

    corpus: Corpus
    cache: SpectrumCache
    features: Features
    skipped: list[Skip]
    lenient: bool


_corpora_read: OrderedDict[str, _ReadCorpus] = OrderedDict()
"""Corpora that this process has read, by their config, for the next trial of a sweep."""


def prepare(cfg: ExperimentConfig, *, threads: int, reuse: bool = False) -> PreparedCorpus:
    """Load, check and read the corpus; build the tokenizer from its training texts.

    Args:
        cfg: config of the run.
        threads: number of threads that decode.
        reuse: take a corpus that this process has read before for the same `data` and `features`, and remember this one: the trials of
            a sweep see the data as they were when it began.

    Raises:
        EmptyDataError: nothing is left to train on, and `data.on_empty=warn`.
        DataError: nothing is left to train on, or something is bad and `data.on_bad=error`.
    """
    read = _read_corpus(cfg, threads=threads, reuse=reuse)
    corpus, skipped = read.corpus, read.skipped
    if cfg.data.folds is not None and cfg.data.fold is not None:
        pool = joined(corpus.splits["train"], corpus.splits["val"])
        train_cuts, val_cuts = split_fold(pool, cfg.data.fold_by, cfg.data.folds, cfg.data.fold)
        corpus.splits |= {"train": train_cuts, "val": val_cuts}
    tokenizer: Tokenizer | None = None
    if len(corpus.splits["train"]):
        tokenizer = build_tokenizer(cfg.tokenizer, texts=texts_of(spoken(corpus.splits["train"])))
        assert tokenizer is not None
        if bad := [token for token in tokenizer.vocabulary if "\0" in token]:
            raise DataError(
                f"the vocabulary holds {bad[0][:60]!r}, which no model can be stored with\n    -> mend tokenizer or data.normalize"
            )
        skipped = [*skipped, *_remove_unlabelled(corpus, tokenizer)]
    report_skips(skipped, cfg.data.on_bad)
    if tokenizer is None or not len(corpus.splits["train"]):
        kind = EmptyDataError if cfg.data.on_empty == "warn" else DataError
        raise kind(f"no utterance is left to train on ({len(skipped)} were bad)\n    -> look at the warnings above")
    _warn_of_unknown_tokens(corpus, tokenizer)
    report_shared(corpus, read.cache.checksums, _on_shared(cfg))
    for name in SPLITS:
        cuts = corpus.splits[name]
        if len(cuts):
            speakers = len(distinct_speakers(cuts) - {None})
            log.info(
                "%-5s %6d utterances  %7.2f h  %s",
                name,
                len(cuts),
                seconds(cuts) / 3600,
                counted(speakers, "speaker") if speakers else "",
            )
    return _prepared(cfg, read, tokenizer, skipped)


def read_ahead(cfg: ExperimentConfig, *, threads: int) -> None:
    """Read the corpus, so that the next call of `prepare` with `reuse` has it, and tell what there is to be told of its reading.

    Args:
        cfg: config of the run.
        threads: number of threads that decode.

    Raises:
        DataError: it cannot be read.
    """
    _read_corpus(cfg, threads=threads, reuse=True)


def _on_shared(cfg: ExperimentConfig) -> dict[str, str]:
    """Return what splits must not share: `data.split.by=text` asks for speakers in several, so that no warning names them."""
    on_shared: dict[str, str] = asdict(cfg.data.on_shared)
    split = dict(cfg.corpus.get("split") or {})
    taken = any(split.get(name) and not cfg.corpus.get(name) for name in ("val", "test"))
    if taken and split["by"] == "text" and on_shared["speaker"] == "warn":
        on_shared["speaker"] = "allow"
    return on_shared


def prepare_split(cfg: ExperimentConfig, split: str, tokenizer: Tokenizer, *, threads: int) -> PreparedCorpus:
    """Load, check and read one split of a corpus, for a model that is trained already.

    Args:
        cfg: config of the run.
        split: train, val or test; the others stay empty.
        tokenizer: the model's.
        threads: number of threads that decode.

    Raises:
        ConfigError: the corpus has no utterances in that split.
        DataError: something is bad and `data.on_bad=error`, or nothing is left.
    """
    read = _read_corpus(cfg, threads=threads, reuse=False, split=split)
    read.corpus.skipped = read.skipped
    report_skips(read.skipped, cfg.data.on_bad)
    if not len(read.corpus.splits[split]):
        if read.skipped:
            raise DataError(f"no utterance of {split} is left ({len(read.skipped)} were bad)\n    -> look at the warnings above")
        fix = "choose another split, or name its list: for example data.test=FILE"
        raise ConfigError([Problem("split", f"the data has no utterances for {split}", fix)])
    return _prepared(cfg, read, tokenizer, read.skipped)


def _prepared(cfg: ExperimentConfig, read: _ReadCorpus, tokenizer: Tokenizer, skipped: Sequence[Skip]) -> PreparedCorpus:
    return PreparedCorpus(
        corpus=read.corpus,
        cache=read.cache,
        features=read.features,
        tokenizer=tokenizer,
        augment=build("augment", cfg.augment),
        limits=Limits(cfg.data.batch_seconds, cfg.data.batch_size, cfg.data.num_buckets),
        num_workers=cfg.data.num_workers,
        seed=cfg.seed,
        lenient=read.lenient,
        skipped=len(skipped),
    )


def _read_corpus(cfg: ExperimentConfig, *, threads: int, reuse: bool, split: str | None = None) -> _ReadCorpus:
    """Read all splits of a corpus, or one of them, into lists of their own, which a run may shorten."""
    key = repr((replace(cfg.data, fold=None), cfg.corpus, cfg.features)) if reuse else ""  # every fold is made of the same corpus
    read = _corpora_read.pop(key, None) or _load(cfg, threads, split)
    if reuse:
        _corpora_read[key] = read
        while len(_corpora_read) > _MOST_CORPORA:
            _corpora_read.popitem(last=False)
    return replace(read, corpus=replace(read.corpus, splits=dict(read.corpus.splits)))


def _load(cfg: ExperimentConfig, threads: int, split: str | None) -> _ReadCorpus:
    """List the utterances, normalise their texts, and read their audio where there is not too much of it."""
    with _without_garbage_collection():
        corpus = _listed(cfg, split)
        _normalize(corpus, cfg.data.normalize)
    _choose_channel(corpus, cfg.data.channel)
    _limit_durations(corpus, cfg)
    features: Features = build("features", cfg.features)
    hours = sum(seconds(cuts) for cuts in corpus.splits.values()) / 3600
    # stored features tell their size when they are read, and signals are small
    if hours <= cfg.data.check_hours or not features.from_audio or corpus.target is not None:
        store = _store(cfg, features, corpus)
        cache, unreadable = read_all(corpus, features, gigabytes=cfg.data.cache_gb, threads=threads, store=store)
        return _ReadCorpus(corpus, cache, features, [*corpus.skipped, *unreadable], lenient=False)
    log.info(
        "%.2f h are more than data.check_hours=%g: audio is read while training, and what is bad is found then",
        *(hours, cfg.data.check_hours),
    )
    return _ReadCorpus(corpus, SpectrumCache(corpus, features, 0.0), features, corpus.skipped, lenient=cfg.data.on_bad == "skip")


def list_corpus(cfg: ExperimentConfig) -> Corpus:
    """List the utterances of a corpus with their texts as they are, and read no audio.

    Raises:
        DataError: it cannot be listed.
    """
    with _without_garbage_collection():
        corpus = _listed(cfg, None)
    _limit_durations(corpus, cfg)
    return corpus


def _listed(cfg: ExperimentConfig, split: str | None) -> Corpus:
    """List the utterances of all splits, or of one."""
    corpus_config = _with_normalisation(cfg.data.normalize, cfg.corpus)
    source: CorpusSource = build("data", corpus_config if split is None else _with_lists_of(split, corpus_config))
    if isinstance(source, KeepsTables) and cfg.data.feature_cache is not None:
        source.table_cache = TableCache(Path(cfg.data.feature_cache) / "lists")
    corpus = source.load(cfg.data.limit_utterances)
    _keep_without_text(corpus, cfg, SPLITS if cfg.data.empty_texts == "train" else (split,) if split is not None else ("val", "test"))
    refuse_repeated_ids(corpus.splits)
    if split is not None:
        corpus.splits = {name: cuts if name == split else [] for name, cuts in corpus.splits.items()}
        corpus.skipped = [skip for skip in corpus.skipped if skip.split == split]
    return corpus


def _limit_durations(corpus: Corpus, cfg: ExperimentConfig) -> None:
    for name in SPLITS:
        corpus.splits[name] = _within_durations(corpus, name, cfg.data.min_duration, cfg.data.max_duration)


def _with_normalisation(steps: Sequence[str], corpus: Component) -> Component:
    """Return a corpus, or a mix of corpora, whose division by texts knows the steps that make some of them the same."""
    if corpus["_target_"] in MIXES:
        return {**corpus, "corpora": {name: _with_normalisation(steps, each) for name, each in corpus["corpora"].items()}}
    split = corpus.get("split")
    if not isinstance(split, Mapping) or split.get("by") != "text":
        return corpus
    return {**corpus, "split": {**split, "normalize": list(steps)}}


def _with_lists_of(split: str, corpus: Component) -> Component:
    """Return a corpus of this package without the lists of other splits, where one split alone is read and has a list of its own."""
    if not has_own_list(corpus, split) or not corpus["_target_"].startswith("speechtrain."):
        return corpus
    others: dict[str, list[str] | None] = {name: [] if isinstance(corpus[name], list) else None for name in SPLITS if name != split}
    shares = {"split": {**corpus["split"], "val": 0, "test": 0}} if "split" in corpus else {}
    return {**corpus, **others, **shares}


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause it: while many small objects are made that all stay, looking for garbage among them is a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _store(cfg: ExperimentConfig, features: Features, corpus: Corpus) -> SpectrumStore | None:
    """Open the store of spectra on disk; None where it is switched off, or audio does not come from files of its own."""
    identity = getattr(features, "identity", None)
    if cfg.data.feature_cache is None or identity is None or not corpus.from_files:
        return None
    try:
        return SpectrumStore(Path(cfg.data.feature_cache), identity, cfg.data.feature_cache_gb)
    except OSError as error:
        log.warning("data.feature_cache=%s cannot be written (%s); features are kept in memory", cfg.data.feature_cache, error.strerror)
        return None


def _keep_without_text(corpus: Corpus, cfg: ExperimentConfig, splits: Sequence[str]) -> None:
    """Take utterances in which nothing is said back into some splits, unless `data.empty_texts=skip`.

    Raises:
        ConfigError: the task has no use for them.
    """
    if cfg.data.empty_texts == "skip":
        return
    if class_name(cfg.task) == "Classification":
        message = f"is {cfg.data.empty_texts}, and a model of the task {class_name(cfg.task)} learns nothing from an empty text"
        raise ConfigError([Problem("data.empty_texts", message, "leave data.empty_texts=skip")])
    for name in splits:
        kept = [skip.cut for skip in corpus.skipped if skip.cut is not None and skip.split == name]
        if kept:
            corpus.splits[name] = limit_cuts(joined(corpus.splits[name], kept), cfg.data.limit_utterances)
            log.info("%-5s %6d utterances without text, in which whatever is recognised is inserted", name, len(kept))
    corpus.skipped = [skip for skip in corpus.skipped if skip.cut is None or skip.split not in splits]


def _normalize(corpus: Corpus, steps: Sequence[str]) -> None:
    """Bring every transcript into its final form; utterances without any text left are skipped."""
    normalize = normalizer(steps)
    changed: list[tuple[str, str]] = []
    known: dict[Columns, Columns] = {}
    for split, cuts in corpus.splits.items():
        if isinstance(cuts, CutTable) and changes_nothing(steps, texts_of(cuts)):
            continue
        before = texts_of(cuts)
        corpus.splits[split] = with_texts(cuts, normalize, known)
        empty = []
        for place, (text, normalized) in enumerate(zip(before, texts_of(corpus.splits[split]), strict=True)):
            if text != normalized and len(changed) < _NORMALIZED_EXAMPLES:
                changed.append((text, normalized))
            if text and not normalized:
                empty.append(place)
                corpus.skipped.append(Skip(split, cuts[place].id, f"nothing is left of its text {text[:40]!r} by data.normalize"))
        corpus.splits[split] = without(corpus.splits[split], empty)
    unchanged = [(text, text) for text in texts_of(corpus.splits["train"])[:_NORMALIZED_EXAMPLES]]
    corpus.normalized = (changed + unchanged)[:_NORMALIZED_EXAMPLES]


def _choose_channel(corpus: Corpus, channel: int | None) -> None:
    """Set the channel of all utterances for which the corpus names none; warn where several channels are mixed."""
    if channel is not None:
        corpus.splits |= {name: with_channel(cuts, channel) for name, cuts in corpus.splits.items()}
        return
    mixed = [name for split in SPLITS for name in mixed_down(corpus.splits[split])]
    if mixed:
        count = sum(len(corpus.splits[split]) for split in SPLITS)
        heard = f"of {len(mixed):,} of {count:,} recordings, which have several channels, the mean is heard"
        log.warning("%s: %s ...; data.channel=0 takes the first", heard, ", ".join(mixed[:3]))


def _within_durations(corpus: Corpus, split: str, shortest: float, longest: float | None) -> Sequence[Cut]:
    """Return the utterances of a split between two durations in seconds; the others are skipped."""
    cuts = corpus.splits[split]
    durations = durations_of(cuts)
    outside = np.flatnonzero((durations < shortest) | (durations > (longest if longest is not None else math.inf)))
    corpus.skipped += [
        Skip(
            *(split, cut.id, f"lasts {cut.duration:.2f} s, outside data.min_duration={shortest} and data.max_duration={longest}"),
            is_bad=False,
        )
        for cut in take(cuts, outside)
    ]
    return without(cuts, outside.tolist())


def _remove_unlabelled(corpus: Corpus, tokenizer: Tokenizer) -> list[Skip]:
    """Leave out training utterances with tokens that the tokenizer lacks, whose labels would be wrong."""
    cuts = corpus.splits["train"]
    unlabelled = tokenizer.with_unknown(texts_of(cuts))
    corpus.splits["train"] = without(cuts, unlabelled)
    skips = []
    for place in unlabelled:
        name, tokens = cuts[place].id, tokenizer.unknown(cuts[place].text)
        reason = f"the tokenizer has nothing for {', '.join(map(repr, tokens[:8]))}"
        if all(in_other_case(token, tokenizer.vocabulary) for token in tokens):
            reason += f", which it has in the other case: set data.normalize=[nfc,{case_step(tokens, tokenizer.vocabulary)},spaces]"
        skips.append(Skip("train", name, reason))
    return skips


def _warn_of_unknown_tokens(corpus: Corpus, tokenizer: Tokenizer) -> None:
    for name in ("val", "test"):
        cuts = corpus.splits[name]
        unknown = Counter(token for place in tokenizer.with_unknown(texts_of(cuts)) for token in tokenizer.unknown(cuts[place].text))
        if unknown:
            examples = ", ".join(f"{token!r} ({count}x)" for token, count in unknown.most_common(10))
            log.warning("%s holds tokens that the training text does not, so they cannot be recognised: %s", name, examples)
