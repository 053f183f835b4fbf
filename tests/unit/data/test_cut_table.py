"""Utterances in columns are those that were written, whatever is asked of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from speechtrain.data import cut_table
from speechtrain.data.corpus import Cut
from speechtrain.data.cut_table import CutTable, Strings, TableWriter, by_id, ids_of, take, texts_of, with_channel, with_texts, without

CUTS = [
    Cut("a", "seven", 1.25, 8000, "theo", "/data/a.flac"),
    Cut("b", "drei \U0001f600 größer", 0.5, 16000, None, "/data/b \udcff.flac", 0.25, 1, custom={"words": [], "accent": "ä"}, channels=2),
    Cut("c", "", 2.0, 8000, "ana", None, channels=2),
    Cut("a-2", "seven", 1.0, 8000, "theo", "/data/a.flac", 0.25),
]


def table(cuts: Sequence[Cut] = CUTS) -> CutTable:
    writer = TableWriter()
    for cut in cuts:
        writer.append(cut)
    return CutTable(writer.columns())


def values(cuts: Sequence[Cut]) -> list[tuple[Any, ...]]:
    return [tuple(getattr(cut, name) for name in Cut.__slots__) for cut in cuts]


def test_a_table_gives_the_utterances_that_were_written() -> None:
    assert values(table()) == values(CUTS)
    assert values([table()[-1], *table()[1:3]]) == values([CUTS[-1], *CUTS[1:3]])
    assert len(table()) == len(CUTS)
    assert len(table().columns.files) == 2  # each name once
    assert list(table([])) == []


def test_an_utterance_that_is_not_there_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        table()[4]


def test_utterances_are_found_by_their_ids_even_where_checksums_are_the_same() -> None:
    same = ["plumless", "buckeroo"]  # both have the CRC-32 4ddb0c25
    found = by_id(table([Cut(name, name, 1.0, 8000) for name in ("x", *same, "y")]))
    assert [found[name].text for name in ("y", *same, "x")] == ["y", *same, "x"]
    assert list(found) == ["x", *same, "y"]
    with pytest.raises(KeyError):
        found["z"]


@pytest.mark.parametrize(
    "asked",
    [
        *(lambda cuts: list(ids_of(cuts)), lambda cuts: list(texts_of(cuts)), lambda cuts: list(cut_table.speakers_of(cuts))),
        *(cut_table.distinct_speakers, cut_table.has_custom, cut_table.seconds, lambda cuts: cut_table.durations_of(cuts).tolist()),
        *(lambda cuts: list(cut_table.mixed_down(cuts)), lambda cuts: cut_table.samples_at(cuts, 22050).tolist()),
        *(
            lambda cuts: values(cut_table.spoken(cuts)),
            lambda cuts: values(without(cuts, range(1, len(cuts), 2))),
            lambda cuts: values(without(cuts, [])),
        ),
        *(lambda cuts: values(take(cuts, np.arange(len(cuts))[::-2])), lambda cuts: values(cut_table.joined(cuts[:1], cuts[2:]))),
        *(lambda cuts: values(with_channel(cuts, 0)), lambda cuts: values(with_texts(cuts, str.upper, {}))),
    ],
)
@pytest.mark.parametrize("places", [[0, 1, 2, 3], [2, 0], []])
def test_a_list_and_a_table_answer_the_same(asked: Callable[[Sequence[Cut]], Any], places: list[int]) -> None:
    some = np.array(places, dtype=np.int64)
    copies = [Cut(*row) for row in values(CUTS)]
    assert asked(take(table(), some)) == asked(take(copies, some))


def test_texts_that_a_change_leaves_as_they_are_take_no_memory() -> None:
    whole = table()
    known: dict[cut_table.Columns, cut_table.Columns] = {}
    assert with_texts(whole, str.strip, known).columns is whole.columns  # type: ignore[attr-defined]


def test_texts_far_apart_and_of_other_scripts_are_read_in_any_order() -> None:
    texts = [f"{number} {'ж' * (number % 3)}" for number in range(30_000)]
    strings = Strings.of(texts)
    places = np.array([29_999, 0, 15_000, *range(5000, 5010)])
    assert list(strings.at(places)) == [texts[place] for place in places]
    assert list(strings) == texts
