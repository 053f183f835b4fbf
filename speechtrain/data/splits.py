"""Division of a corpus into training, validation and test utterances, and into folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from speechtrain.data.corpus import SPLITS, Cut
from speechtrain.errors import DataError


def split_cuts(cuts: list[Cut], *, by: str, val: float | list[str], test: float | list[str], seed: int) -> dict[str, list[Cut]]:
    """Divide one list: the named speakers, or a percentage of utterances, go to val and test.

    A percentage by speaker, or by parent (what variants of one recording share), takes whole groups, in an order that `seed` fixes, until
    the share is reached.

    Raises:
        DataError: a named speaker is not there, or speakers are needed and not given.
    """
    grouped = by == "speaker" or isinstance(val, list) or isinstance(test, list)
    speakers = {cut.speaker for cut in cuts}
    if grouped and None in speakers:
        missing = next(cut.id for cut in cuts if cut.speaker is None)
        raise DataError(
            f"splitting by speaker needs a speaker for each utterance; '{missing}' has none. Add 'speaker', or set data.split.by=utterance"
        )
    group = {"speaker": _speaker, "parent": _parent, "utterance": _utterance}[by]
    parts: dict[str, list[Cut]] = {name: [] for name in SPLITS}
    left = list(cuts)
    for name, share in (("test", test), ("val", val)):
        if isinstance(share, list):
            unknown = [str(speaker) for speaker in share if str(speaker) not in speakers]
            if unknown:
                raise DataError(f"data.split.{name}: no speaker {', '.join(unknown)}; there is: {', '.join(sorted(map(str, speakers)))}")
            chosen = {str(speaker) for speaker in share}
        else:
            chosen = _share(left, round(len(cuts) * share / 100), group, seed)
        key = _speaker if isinstance(share, list) else group
        parts[name] = [cut for cut in left if key(cut) in chosen]
        left = [cut for cut in left if key(cut) not in chosen]
    parts["train"] = left
    return parts


def fill_splits(cuts: dict[str, list[Cut]], missing: Collection[str], split: Mapping[str, Any]) -> dict[str, list[Cut]]:
    """The splits, with those that have no list of their own taken from train.

    Args:
        cuts: as listed.
        missing: those of val and test that have no list.
        split: `by`, `val`, `test`, `seed`, as `split_cuts` takes them.

    Raises:
        DataError: as `split_cuts`, or nothing is left to train on.
    """
    asked = {part: split[part] for part in missing if split[part]}
    if asked:
        parts = split_cuts(cuts["train"], by=split["by"], val=asked.get("val", 0), test=asked.get("test", 0), seed=split["seed"])
        cuts = {**cuts, **{name: parts[name] for name in ("train", *missing)}}
    if not cuts["train"]:
        raise DataError("data.split leaves no utterance to train on\n    -> lower data.split.val and data.split.test")
    return cuts


def _speaker(cut: Cut) -> str:
    return str(cut.speaker)


def _utterance(cut: Cut) -> str:
    return str(cut.id)


def _parent(cut: Cut) -> str:
    """What an utterance is a variant of; without any it stands for itself."""
    return str(cut.custom.get("parent") or cut.id)


def _share(cuts: list[Cut], wanted: int, group: Callable[[Cut], str], seed: int) -> set[str]:
    counts = Counter(group(cut) for cut in cuts)
    names = sorted(counts)
    np.random.default_rng(seed).shuffle(names)
    chosen: set[str] = set()
    taken = 0
    for name in names:
        if taken >= wanted:
            break
        chosen.add(name)
        taken += counts[name]
    return chosen


def spread(cuts: list[Cut], limit: int | None) -> list[Cut]:
    """At most so many, at equal distances: lists often stand speaker by speaker, or word by word."""
    if limit is None or len(cuts) <= limit:
        return cuts
    return [cuts[index * len(cuts) // limit] for index in range(limit)]


def split_fold(cuts: Sequence[Cut], by: str, folds: int, fold: int) -> tuple[list[Cut], list[Cut]]:
    """What is trained on, and what is left out for validation, in one of k folds.

    Groups that stay together go, the largest first, to the fold that is smallest so far; the same for every run.

    Args:
        cuts: of all folds.
        by: `speaker`, `parent` (`custom["parent"]`) or `utterance`: what stays together.
        folds: k.
        fold: from 0.

    Raises:
        DataError: an utterance has no speaker or parent, or there are fewer groups than folds.
    """
    names = {cut.id: _group(cut, by) for cut in cuts}
    if missing := [cut.id for cut in cuts if names[cut.id] is None]:
        raise DataError(
            f"data.fold_by={by} needs a {by} for each utterance; '{missing[0]}' has none\n"
            "    -> give it in the manifest, or set data.fold_by=utterance"
        )
    sizes = Counter(names.values())
    if len(sizes) < folds:
        raise DataError(f"data.folds={folds}, but there are only {len(sizes)} to divide (data.fold_by={by})\n    -> lower data.folds")
    order = sorted(sizes, key=str)
    np.random.default_rng(0).shuffle(order)
    order.sort(key=lambda name: -sizes[name])
    filled = [0] * folds
    chosen: dict[str | None, int] = {}
    for name in order:
        chosen[name] = min(range(folds), key=lambda index: filled[index])
        filled[chosen[name]] += sizes[name]
    left_out = [cut for cut in cuts if chosen[names[cut.id]] == fold]
    return [cut for cut in cuts if chosen[names[cut.id]] != fold], left_out


def _group(cut: Cut, by: str) -> str | None:
    if by == "utterance":
        return str(cut.id)
    found = cut.speaker if by == "speaker" else cut.custom.get("parent")
    return None if found is None else str(found)


def refuse_repeated_ids(cuts: Mapping[str, Sequence[Cut]]) -> None:
    """Each utterance has its own id, and belongs to one split.

    Raises:
        DataError: an id stands twice.
    """
    seen: dict[str, str] = {}
    for name in SPLITS:
        for cut in cuts[name]:
            if cut.id in seen:
                raise DataError(
                    f"utterance id '{cut.id}' stands twice ({seen[cut.id]} and {name})\n"
                    "    -> give each utterance its own id (utt_id in a manifest), and one split"
                )
            seen[cut.id] = name
