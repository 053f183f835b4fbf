"""Counts are sclite's, intervals cover what they say, calibration and groups add up."""

from __future__ import annotations

import math
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechtrain.report.errors import (
    Interval,
    Utterance,
    align_words,
    bootstrap,
    by_duration,
    by_field,
    calibration,
    confused_tokens,
    confused_words,
    fields_of,
    paired_bootstrap,
    total,
    trn,
    worst,
)

SCLITE = shutil.which("sclite") or next((str(path) for path in [Path("/usr/lib/sctk/bin/sclite")] if path.is_file()), None)
WORDS = ["zero", "one", "two", "three", "four"]


def utterances(count: int, seed: int = 0) -> list[Utterance]:
    """References of up to 12 words with errors of all kinds, some of them long and bad."""
    rng = random.Random(seed)
    found = []
    for index in range(count):
        reference = [rng.choice(WORDS) for _ in range(rng.randint(1, 12))]
        share = rng.choice([0.0, 0.1, 0.3, 0.8])
        hypothesis: list[str] = []
        for word in reference:
            kind = rng.random()
            if kind < share / 3:
                continue
            hypothesis.append(rng.choice(WORDS) if kind < 2 * share / 3 else word)
            if 2 * share / 3 <= kind < share:
                hypothesis.append(rng.choice(WORDS))
        found.append(Utterance(f"s{index % 3}-{index:04d}", " ".join(reference), " ".join(hypothesis), seconds=0.3 * len(reference)))
    return found


@pytest.mark.skipif(SCLITE is None, reason="needs sclite: apt-get install sctk")
def test_substitutions_insertions_and_deletions_are_those_of_sclite(tmp_path: Path) -> None:
    assert SCLITE is not None
    spoken = utterances(400)
    (tmp_path / "ref.trn").write_text(trn((each.id, each.reference) for each in spoken))
    (tmp_path / "hyp.trn").write_text(trn((each.id, each.hypothesis) for each in spoken))
    command = [SCLITE, "-r", "ref.trn", "trn", "-h", "hyp.trn", "trn", "-i", "spu_id", "-o", "rsum", "stdout"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    line = next(line for line in out.splitlines() if re.search(r"\|\s*Sum", line))
    numbers = [int(item) for item in re.findall(r"\d+", line)]
    counts = total(spoken)
    sentences, words, correct, substitutions, deletions, insertions, errors, wrong = numbers
    assert (sentences, words) == (counts.utterances, counts.words)
    assert (errors, wrong) == (counts.errors, counts.wrong)
    assert (substitutions, deletions, insertions) == (counts.substitutions, counts.deletions, counts.insertions)
    assert correct == counts.words - counts.substitutions - counts.deletions


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
@settings(max_examples=200, deadline=None)
def test_an_alignment_holds_both_texts_in_order_and_no_cheaper_one_exists(reference: list[str], hypothesis: list[str]) -> None:
    found = align_words(reference, hypothesis)
    assert [item.reference for item in found if item.reference] == reference
    assert [item.hypothesis for item in found if item.hypothesis] == hypothesis
    price = {"equal": 0, "substitute": 4, "insert": 3, "delete": 3}

    def cheapest(left: tuple[str, ...], right: tuple[str, ...], known: dict[tuple[int, int], int]) -> int:
        key = (len(left), len(right))
        if key not in known:
            if not left or not right:
                known[key] = 3 * (len(left) + len(right))
            else:
                same = 0 if left[0] == right[0] else 4
                known[key] = min(
                    same + cheapest(left[1:], right[1:], known),
                    3 + cheapest(left[1:], right, known),
                    3 + cheapest(left, right[1:], known),
                )
        return known[key]

    assert sum(price[item.operation] for item in found) == cheapest(tuple(reference), tuple(hypothesis), {})


def test_an_empty_reference_counts_its_insertions() -> None:
    counts = Utterance("a", "", "one two").counts
    assert (counts.insertions, counts.words, counts.wer) == (2, 0, math.inf)
    assert Utterance("a", "", "").counts.wer == 0.0


def test_the_interval_of_a_rate_covers_the_truth_about_95_times_of_100() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        sizes = rng.integers(1, 10, 150)
        errors = rng.binomial(sizes, 0.2)
        found = bootstrap(errors.tolist(), sizes.tolist(), count=300, seed=seed)
        hits += found.low <= 0.2 <= found.high
    assert 180 <= hits <= 198


def test_a_rate_is_of_the_whole_and_not_a_mean_of_utterances() -> None:
    found = bootstrap([1, 0], [2, 6], count=50)
    assert found.value == 0.125
    assert found.low == 0.0
    assert bootstrap([], []).value == 0.0


def test_the_upper_bound_rises_with_each_error_and_covers_few_of_them() -> None:
    def interval(wrong: int) -> Interval:
        return bootstrap([1] * wrong + [0] * (350 - wrong), [3] * 350)

    bounds = [interval(wrong).high for wrong in range(5)]
    assert bounds == sorted(set(bounds))
    assert bounds[0] == pytest.approx(0.00365, abs=1e-5)  # z² / (1050 + z²)
    assert bounds[1] == pytest.approx(0.00538, abs=1e-4)


def test_an_accuracy_of_nothing_has_an_upper_bound_and_rises_with_each_that_is_right() -> None:
    lowest = [bootstrap([1] * (100 - right) + [0] * right, [1] * 100).low for right in range(4)]
    assert lowest == sorted(lowest, reverse=True)
    assert lowest[0] == pytest.approx(0.963, abs=1e-3)
    assert bootstrap([2, 4], [1, 2]).low == 2.0, "more errors than words"


def test_characters_of_a_word_are_no_evidence_of_their_own() -> None:
    characters = bootstrap([0] * 50, [15] * 50, units=150)
    assert characters.high == bootstrap([0] * 50, [3] * 50).high
    assert characters.high > bootstrap([0] * 50, [15] * 50).high


def test_two_systems_that_are_the_same_do_not_differ_and_a_better_one_does() -> None:
    rng = np.random.default_rng(2)
    sizes = rng.integers(2, 8, 300)
    first = rng.binomial(sizes, 0.3)
    assert paired_bootstrap(first.tolist(), first.tolist(), sizes.tolist(), count=500).p_value == 1.0
    better = rng.binomial(sizes, 0.1)
    found = paired_bootstrap(first.tolist(), better.tolist(), sizes.tolist(), count=2000)
    assert found.difference.high < 0
    assert found.p_value < 0.01
    assert found.better > 0.99


def test_chance_alone_is_called_a_difference_about_5_times_of_100() -> None:
    rng = np.random.default_rng(3)
    called = 0
    for seed in range(200):
        sizes = rng.integers(1, 8, 200)
        first, second = rng.binomial(sizes, 0.2), rng.binomial(sizes, 0.2)
        called += paired_bootstrap(first.tolist(), second.tolist(), sizes.tolist(), count=300, seed=seed).p_value < 0.05
    assert 2 <= called <= 20


def test_groups_add_up_to_the_whole() -> None:
    spoken = [
        Utterance(each.id, each.reference, each.hypothesis, each.seconds, fields={"speaker": each.id[:2], "id": each.id, "room": "a"})
        for each in utterances(90)
    ]
    assert fields_of(spoken) == ["speaker"]  # one value for all, or one for each, divides nothing
    assert fields_of(spoken[:12]) == ["speaker"]
    for groups in (by_field(spoken, "speaker"), by_duration(spoken)):
        assert len(groups) > 1
        assert sum(each.words for each in groups.values()) == total(spoken).words
        assert sum(each.errors for each in groups.values()) == total(spoken).errors
    assert [each.counts.errors for each in worst(spoken, 5)] == sorted((each.counts.errors for each in spoken), reverse=True)[:5]


def test_confusions_name_what_was_said_for_what() -> None:
    spoken = [Utterance("a", "one two three", "one too three four"), Utterance("b", "two", "too")]
    assert confused_words(spoken) == {("two", "too"): 2, ("", "four"): 1}
    assert confused_tokens([Utterance("a", "two", "too")], list) == {("w", "o"): 1}


def test_calibration_finds_confidence_that_is_too_high() -> None:
    honest = [Utterance(str(i), "a", "a" if i % 10 < 8 else "b", words=(("a" if i % 10 < 8 else "b", 0.8),)) for i in range(100)]
    proud = [Utterance(each.id, each.reference, each.hypothesis, words=((each.hypothesis, 1.0),)) for each in honest]
    first, second = calibration(honest), calibration(proud)
    assert first is not None
    assert second is not None
    assert first.error == pytest.approx(0.0, abs=1e-9)
    assert second.error == pytest.approx(0.2)
    assert calibration([Utterance("a", "one", "one")]) is None
