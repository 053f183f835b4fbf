"""Division of a corpus into training, validation and test utterances, and into folds."""

from __future__ import annotations

import itertools
import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from speechtrain.data.corpus import SPLITS, Cut
from speechtrain.data.cut_table import Places, distinct_speakers, has_custom, ids_of, speakers_of, take, texts_of
from speechtrain.data.text.normalize import normalizer
from speechtrain.errors import DataError

log = logging.getLogger(__name__)

_MOST_GROUPS = {3: 20, 2: 60}
"""Groups of which three, or two, are moved at once to come nearer to a share; of more there are small ones to move one by one."""
_TOLERANCE = 3.0  # per cent that a share may be off without a warning


def split_cuts(
    cuts: Sequence[Cut], *, by: str, val: float | list[str], test: float | list[str], seed: int, normalize: Sequence[str] = ()
) -> dict[str, Sequence[Cut]]:
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
    speakers = distinct_speakers(cuts)
    if needs_speakers and None in speakers:
        missing = next(name for name, speaker in zip(ids_of(cuts), speakers_of(cuts), strict=True) if speaker is None)
        raise DataError(
            f"splitting by speaker needs a speaker for each utterance; '{missing}' has none. Add 'speaker', or set data.split.by=utterance"
        )
    groups = _Groups.of(_by_text(cuts, normalizer(normalize)) if by == "text" else _names(cuts, by))
    parts: dict[str, Places] = {name: np.zeros(0, dtype=np.int64) for name in SPLITS}
    remaining = np.arange(len(cuts))
    for name, share in (("test", test), ("val", val)):
        if isinstance(share, list):
            unknown = [str(speaker) for speaker in share if str(speaker) not in speakers]
            if unknown:
                raise DataError(f"data.split.{name}: no speaker {', '.join(unknown)}; there is: {', '.join(sorted(map(str, speakers)))}")
            named = {str(speaker) for speaker in share}
            is_chosen = np.array([str(speaker) in named for speaker in speakers_of(take(cuts, remaining))], dtype=bool)
        else:
            is_chosen = _draw_groups(groups, remaining, round(len(cuts) * share / 100), seed)
        parts[name], remaining = remaining[is_chosen], remaining[~is_chosen]
    parts["train"] = remaining
    wanted = {name: float(share) for name, share in (("val", val), ("test", test)) if not isinstance(share, list) and share}
    if wanted:
        _rebalance(parts, {name: round(len(cuts) * share / 100) for name, share in wanted.items()}, groups)
        _log_shares(parts, wanted, by, len(cuts))
    return {name: take(cuts, places) for name, places in parts.items()}


class _Groups(NamedTuple):
    """What is never divided.

    Attributes:
        of_place: number of each utterance's group (N,), in the order of their names.
        total: number of groups, G.
    """

    of_place: Places
    total: int

    @classmethod
    def of(cls, names: Sequence[str]) -> _Groups:
        """Return the groups of utterances with the same name."""
        names = list(names)
        order = sorted(range(len(names)), key=names.__getitem__)
        begins = np.fromiter((names[first] != names[second] for first, second in itertools.pairwise(order)), dtype=bool)
        of_place = np.zeros(len(names), dtype=np.int64)
        of_place[np.array(order[1:], dtype=np.int64)] = np.cumsum(begins)
        return cls(of_place, int(begins.sum()) + min(1, len(names)))

    def sizes(self, places: Places) -> npt.NDArray[np.int64]:
        """Return how many utterances at some places are in each group (G,)."""
        return np.bincount(self.of_place[places], minlength=self.total)


def _names(cuts: Sequence[Cut], by: str) -> Sequence[str]:
    """Return the name of each utterance's group: its speaker, its parent or its id."""
    if by == "speaker":
        return [str(speaker) for speaker in speakers_of(cuts)]
    if by == "parent" and has_custom(cuts):
        return [_parent(cut) for cut in cuts]
    return ids_of(cuts)


def _rebalance(parts: dict[str, Places], goals: Mapping[str, int], whole: _Groups) -> None:
    """Move whole groups between train and the parts that have goals, while their sizes come nearer to these."""
    names = ("train", *goals)
    counts = {name: len(parts[name]) for name in names}
    aims = {**goals, "train": sum(counts.values()) - sum(goals.values())}
    if counts == aims:
        return
    sizes_in = {name: whole.sizes(parts[name]) for name in names}
    part_of = {group: name for name in names for group in np.flatnonzero(sizes_in[name]).tolist()}
    sizes = dict(enumerate(np.sum(list(sizes_in.values()), axis=0).tolist()))

    def cost(changes: Mapping[int, str]) -> int:
        after = dict(counts)
        for group, to in changes.items():
            after[part_of[group]] -= sizes[group]
            after[to] += sizes[group]
        empty = sum(aims[name] > 0 and not after[name] for name in names)
        return sum(abs(after[name] - aims[name]) for name in names) + 2 * sum(aims.values()) * empty

    groups = sorted(part_of)
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
    places = np.concatenate([parts[name] for name in names])
    parts_of_groups = np.array([names.index(part_of[group]) if group in part_of else len(names) for group in range(whole.total)])
    for number, name in enumerate(names):
        parts[name] = places[parts_of_groups[whole.of_place[places]] == number]


def _log_shares(parts: Mapping[str, Places], wanted: Mapping[str, float], by: str, total: int) -> None:
    shares = {name: 100 * len(parts[name]) / total for name in SPLITS}
    text = ", ".join(f"{name} {share:.1f} %" for name, share in shares.items())
    if empty := [name for name in wanted if not len(parts[name])]:
        fix = "set data.split.by=text, or give lists" if by in ("speaker", "parent") else "raise its share, or give a list"
        log.warning("data.split: nothing is left for %s, as each %s is in one split\n    -> %s", " and ".join(empty), by, fix)
    elif any(abs(shares[name] - share) > _TOLERANCE for name, share in wanted.items()):
        asked = ", ".join(f"{name} {share:g} %" for name, share in wanted.items())
        log.warning("data.split: %s of the utterances, as near to %s as each %s in one split allows", text, asked, by)
    else:
        log.info("data.split: %s of the utterances", text)


def complete_splits(
    cuts: Mapping[str, Sequence[Cut]], missing: Collection[str], split: Mapping[str, Any], limit: int | None
) -> dict[str, Sequence[Cut]]:
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
    if shares and not len(cuts["train"]):
        raise DataError("data.split leaves no utterance to train on\n    -> lower data.split.val and data.split.test")
    return {name: limit_cuts(cuts[name], limit) for name in SPLITS}


def _by_text(cuts: Sequence[Cut], normalize: Callable[[str], str]) -> list[str]:
    """Return a name of each utterance's text: one name for texts that, normalised, differ in case, punctuation and spaces alone."""
    names: dict[str, str] = {}
    groups = {text: names.setdefault(_letters(normalize(text)), text) for text in sorted(set(texts_of(cuts)))}
    return [groups[text] for text in texts_of(cuts)]


def _letters(text: str) -> str:
    """Return the letters, marks and digits of a text, without the difference between capital and small ones."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if unicodedata.category(character)[0] in "LMN")


def _parent(cut: Cut) -> str:
    """Return the recording that an utterance is a variant of; without one it is its own parent."""
    return str(cut.custom.get("parent") or cut.id)


def _draw_groups(groups: _Groups, places: Places, goal: int, seed: int) -> npt.NDArray[np.bool_]:
    """Draw whole groups until they hold the wanted number of utterances. Returns which of those at `places` are drawn."""
    if goal <= 0:
        return np.zeros(len(places), dtype=bool)
    sizes = groups.sizes(places)
    order = np.flatnonzero(sizes)
    np.random.default_rng(seed).shuffle(order)
    before = np.cumsum(sizes[order]) - sizes[order]
    is_chosen = np.zeros(groups.total, dtype=bool)
    is_chosen[order[before < goal]] = True
    return is_chosen[groups.of_place[places]]


def limit_cuts(cuts: Sequence[Cut], limit: int | None) -> Sequence[Cut]:
    """Take at most `limit` utterances, at equal distances, since lists are often sorted by speaker or by word."""
    if limit is None or len(cuts) <= limit:
        return cuts
    return [cuts[index * len(cuts) // limit] for index in range(limit)]


def split_fold(cuts: Sequence[Cut], by: str, folds: int, fold: int) -> tuple[Sequence[Cut], Sequence[Cut]]:
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
    names = _group_names(cuts, by)
    if None in names:
        raise DataError(
            f"data.fold_by={by} needs a {by} for each utterance; '{ids_of(cuts)[names.index(None)]}' has none\n"
            "    -> give it in the manifest, or set data.fold_by=utterance"
        )
    sizes = Counter(names)
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
    is_left_out = np.array([fold_of[name] == fold for name in names], dtype=bool)
    return take(cuts, np.flatnonzero(~is_left_out)), take(cuts, np.flatnonzero(is_left_out))


def _group_names(cuts: Sequence[Cut], by: str) -> list[str | None]:
    """Return the speaker, parent or id of each utterance; None: it has none."""
    if by == "utterance":
        return list(ids_of(cuts))
    names = speakers_of(cuts) if by == "speaker" else [cut.custom.get("parent") for cut in cuts]
    return [None if name is None else str(name) for name in names]


def refuse_repeated_ids(cuts: Mapping[str, Sequence[Cut]]) -> None:
    """Check that each utterance has its own id, and belongs to one split.

    Raises:
        DataError: two utterances have the same id.
    """
    sums = np.sort(np.fromiter((hash(each) for name in SPLITS for each in ids_of(cuts[name])), dtype=np.int64))
    if not np.any(sums[1:] == sums[:-1]):
        return
    seen: dict[str, str] = {}
    for name in SPLITS:
        for cut in cuts[name]:
            if cut.id in seen:
                raise DataError(
                    f"utterance id '{cut.id}' occurs twice ({seen[cut.id]} and {name})\n"
                    "    -> give each utterance its own id (in a manifest utt_id, elsewhere a file's name without ending), and one split"
                )
            seen[cut.id] = name
