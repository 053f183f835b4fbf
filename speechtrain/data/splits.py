"""Division of a corpus into training, validation and test utterances, and into folds."""

from __future__ import annotations

import itertools
import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from speechtrain.data.corpus import SPLITS, Cut
from speechtrain.data.text.normalize import normalizer
from speechtrain.errors import DataError

log = logging.getLogger(__name__)

_MOST_GROUPS = {3: 20, 2: 60}
"""Groups of which three, or two, are moved at once to come nearer to a share; of more there are small ones to move one by one."""
_TOLERANCE = 3.0  # per cent that a share may be off without a warning


def split_cuts(
    cuts: list[Cut], *, by: str, val: float | list[str], test: float | list[str], seed: int, normalize: Sequence[str] = ()
) -> dict[str, list[Cut]]:
    """Divide one list: the named speakers, or a percentage of utterances, go to val and test.

    Args:
        cuts: all utterances.
        by: what is never divided: `speaker`, `parent` (what variants of one recording share), `text` (what is said) or `utterance`.
        val: per cent of the utterances, taken by whole groups so that the share is as near as may be; or names of speakers.
        test: the same for the test split.
        seed: seed of the order in which groups are taken.
        normalize: steps of `data.normalize`, which the texts pass later: those that they make the same are one text.

    Raises:
        DataError: there is no speaker of that name, or an utterance has no speaker and one is needed.
    """
    needs_speakers = by == "speaker" or isinstance(val, list) or isinstance(test, list)
    speakers = {cut.speaker for cut in cuts}
    if needs_speakers and None in speakers:
        missing = next(cut.id for cut in cuts if cut.speaker is None)
        raise DataError(
            f"splitting by speaker needs a speaker for each utterance; '{missing}' has none. Add 'speaker', or set data.split.by=utterance"
        )
    names = {"speaker": _speaker, "parent": _parent, "utterance": _utterance}
    group_of = _by_text(cuts, normalizer(normalize)) if by == "text" else names[by]
    parts: dict[str, list[Cut]] = {name: [] for name in SPLITS}
    remaining = list(cuts)
    for name, share in (("test", test), ("val", val)):
        if isinstance(share, list):
            unknown = [str(speaker) for speaker in share if str(speaker) not in speakers]
            if unknown:
                raise DataError(f"data.split.{name}: no speaker {', '.join(unknown)}; there is: {', '.join(sorted(map(str, speakers)))}")
            chosen = {str(speaker) for speaker in share}
        else:
            chosen = _draw_groups(remaining, round(len(cuts) * share / 100), group_of, seed)
        key = _speaker if isinstance(share, list) else group_of
        parts[name] = [cut for cut in remaining if key(cut) in chosen]
        remaining = [cut for cut in remaining if key(cut) not in chosen]
    parts["train"] = remaining
    wanted = {name: float(share) for name, share in (("val", val), ("test", test)) if not isinstance(share, list) and share}
    if wanted:
        _rebalance(parts, {name: round(len(cuts) * share / 100) for name, share in wanted.items()}, group_of)
        _log_shares(parts, wanted, by, len(cuts))
    return parts


def _rebalance(parts: dict[str, list[Cut]], goals: Mapping[str, int], group_of: Callable[[Cut], str]) -> None:
    """Move whole groups between train and the parts that have goals, while their sizes come nearer to these."""
    names = ("train", *goals)
    part_of = {group_of(cut): name for name in names for cut in parts[name]}
    sizes = Counter(group_of(cut) for name in names for cut in parts[name])
    counts = {name: len(parts[name]) for name in names}
    aims = {**goals, "train": sum(counts.values()) - sum(goals.values())}

    def cost(changes: Mapping[str, str]) -> int:
        after = dict(counts)
        for group, to in changes.items():
            after[part_of[group]] -= sizes[group]
            after[to] += sizes[group]
        empty = sum(aims[name] > 0 and not after[name] for name in names)
        return sum(abs(after[name] - aims[name]) for name in names) + 2 * sum(aims.values()) * empty

    groups = sorted(sizes)
    together = next((number for number, most in _MOST_GROUPS.items() if len(groups) <= most), 1)
    while lowest := cost({}):
        moves = (
            dict(zip(some, places, strict=True))
            for number in range(1, together + 1)
            for some in itertools.combinations(groups, number)
            for places in itertools.product(names, repeat=number)
        )
        best = min(moves, key=cost)
        if cost(best) >= lowest:
            break
        for group, to in best.items():
            counts[part_of[group]] -= sizes[group]
            counts[to] += sizes[group]
            part_of[group] = to
    cuts = [cut for name in names for cut in parts[name]]
    for name in names:
        parts[name] = [cut for cut in cuts if part_of[group_of(cut)] == name]


def _log_shares(parts: Mapping[str, Sequence[Cut]], wanted: Mapping[str, float], by: str, total: int) -> None:
    shares = {name: 100 * len(parts[name]) / total for name in SPLITS}
    text = ", ".join(f"{name} {share:.1f} %" for name, share in shares.items())
    if empty := [name for name in wanted if not parts[name]]:
        fix = "set data.split.by=text, or give lists" if by in ("speaker", "parent") else "raise its share, or give a list"
        log.warning("data.split: nothing is left for %s, as each %s is in one split\n    -> %s", " and ".join(empty), by, fix)
    elif any(abs(shares[name] - share) > _TOLERANCE for name, share in wanted.items()):
        asked = ", ".join(f"{name} {share:g} %" for name, share in wanted.items())
        log.warning("data.split: %s of the utterances, as near to %s as each %s in one split allows", text, asked, by)
    else:
        log.info("data.split: %s of the utterances", text)


def complete_splits(
    cuts: dict[str, list[Cut]], missing: Collection[str], split: Mapping[str, Any], limit: int | None
) -> dict[str, list[Cut]]:
    """Take splits that have no list of their own from train, and limit each.

    Args:
        cuts: utterances by split, as listed.
        missing: names of the splits, val or test, that have no list.
        split: `by`, `val`, `test`, `seed`, and perhaps `normalize`, as `split_cuts` takes them.
        limit: utterances of a split at most; None: all.

    Raises:
        DataError: see `split_cuts`; or nothing is left to train on.
    """
    shares = {part: split[part] for part in missing if split[part]}
    if shares:
        steps = split.get("normalize", ())
        val, test = shares.get("val", 0), shares.get("test", 0)
        parts = split_cuts(cuts["train"], by=split["by"], val=val, test=test, seed=split["seed"], normalize=steps)
        cuts = {**cuts, **{name: parts[name] for name in ("train", *missing)}}
    if shares and not cuts["train"]:
        raise DataError("data.split leaves no utterance to train on\n    -> lower data.split.val and data.split.test")
    return {name: limit_cuts(cuts[name], limit) for name in SPLITS}


def _speaker(cut: Cut) -> str:
    return str(cut.speaker)


def _utterance(cut: Cut) -> str:
    return str(cut.id)


def _by_text(cuts: Sequence[Cut], normalize: Callable[[str], str]) -> Callable[[Cut], str]:
    """Return what names the text of an utterance: one name for texts that, normalised, differ in case, punctuation and spaces alone."""
    names: dict[str, str] = {}
    groups = {text: names.setdefault(_letters(normalize(text)), text) for text in sorted({cut.text for cut in cuts})}
    return lambda cut: groups[cut.text]


def _letters(text: str) -> str:
    """Return the letters, marks and digits of a text, without the difference between capital and small ones."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if unicodedata.category(character)[0] in "LMN")


def _parent(cut: Cut) -> str:
    """Return the recording that an utterance is a variant of; without one it is its own parent."""
    return str(cut.custom.get("parent") or cut.id)


def _draw_groups(cuts: list[Cut], goal: int, group_of: Callable[[Cut], str], seed: int) -> set[str]:
    """Draw whole groups until they hold the wanted number of utterances."""
    counts = Counter(group_of(cut) for cut in cuts)
    names = sorted(counts)
    np.random.default_rng(seed).shuffle(names)
    chosen: set[str] = set()
    count = 0
    for name in names:
        if count >= goal:
            break
        chosen.add(name)
        count += counts[name]
    return chosen


def limit_cuts(cuts: list[Cut], limit: int | None) -> list[Cut]:
    """Take at most `limit` utterances, at equal distances, since lists are often sorted by speaker or by word."""
    if limit is None or len(cuts) <= limit:
        return cuts
    return [cuts[index * len(cuts) // limit] for index in range(limit)]


def split_fold(cuts: Sequence[Cut], by: str, folds: int, fold: int) -> tuple[list[Cut], list[Cut]]:
    """Divide utterances into those to train on and those to validate on, in one of k folds.

    Groups go, the largest first, to the fold that is smallest so far; the same for every run.

    Args:
        cuts: utterances of all folds.
        by: what is never divided: `speaker`, `parent` (`custom["parent"]`) or `utterance`.
        folds: number of folds, k.
        fold: number of the fold to validate on, counted from 0.

    Returns:
        The utterances to train on, and those to validate on.

    Raises:
        DataError: an utterance has no speaker or parent, or there are fewer groups than folds.
    """
    names = {cut.id: _group_name(cut, by) for cut in cuts}
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
    fold_of: dict[str | None, int] = {}
    for name in order:
        fold_of[name] = min(range(folds), key=lambda index: filled[index])
        filled[fold_of[name]] += sizes[name]
    train = [cut for cut in cuts if fold_of[names[cut.id]] != fold]
    return train, [cut for cut in cuts if fold_of[names[cut.id]] == fold]


def _group_name(cut: Cut, by: str) -> str | None:
    """Return the speaker, parent or id of an utterance; None: it has none."""
    if by == "utterance":
        return str(cut.id)
    name = cut.speaker if by == "speaker" else cut.custom.get("parent")
    return None if name is None else str(name)


def refuse_repeated_ids(cuts: Mapping[str, Sequence[Cut]]) -> None:
    """Check that each utterance has its own id, and belongs to one split.

    Raises:
        DataError: two utterances have the same id.
    """
    seen: dict[str, str] = {}
    for name in SPLITS:
        for cut in cuts[name]:
            if cut.id in seen:
                raise DataError(
                    f"utterance id '{cut.id}' occurs twice ({seen[cut.id]} and {name})\n"
                    "    -> give each utterance its own id (in a manifest utt_id, elsewhere a file's name without ending), and one split"
                )
            seen[cut.id] = name
