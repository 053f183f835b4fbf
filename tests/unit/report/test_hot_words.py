"""Counts of hot words that were found, missed and inserted."""

from __future__ import annotations

import pytest

from speechtrain.report.hot_words import HotWordCounts, count_hot_words, total_of


@pytest.mark.parametrize(
    ("texts", "counts"),
    [
        ([("anna met anna", "anna met hannah")], HotWordCounts(1, 1, 0)),
        ([("anna met otto", "anna met anna")], HotWordCounts(1, 0, 1)),
        ([("met otto", "anna met otto"), ("anna", "")], HotWordCounts(0, 1, 1)),  # not found: it was said elsewhere
        ([("hannah annas", "hannah annas")], HotWordCounts()),
    ],
)
def test_a_word_is_found_as_often_as_both_texts_of_an_utterance_have_it(texts: list[tuple[str, str]], counts: HotWordCounts) -> None:
    assert count_hot_words(["anna"], texts, parted=True) == {"anna": counts}


def test_where_nothing_parts_words_one_is_found_wherever_it_is_written() -> None:
    counts = count_hot_words(["天气", "明天"], [("明天天气好", "明天天汽好天气")], parted=False)
    assert counts == {"天气": HotWordCounts(found=1), "明天": HotWordCounts(found=1)}
    assert total_of([*counts.values()]) == HotWordCounts(found=2)
    assert total_of([*counts.values()]).said == 2
