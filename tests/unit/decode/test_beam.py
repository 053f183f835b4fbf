"""Beam search, against every alignment there is."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechtrain.data.text.tokenizers import CharTokenizer
from speechtrain.decode.base import RankingDecoder
from speechtrain.decode.beam import SPACE, BeamDecoder, names_of, read_lexicon, total_log_probs
from speechtrain.decode.greedy import GreedyDecoder
from speechtrain.decode.ngram import BEGIN, END, Gram, NGram
from speechtrain.decode.prefix_search import PrefixSearch, TokenScorer
from speechtrain.errors import ConfigError, DataError

AB = CharTokenizer(["ab "])
DIGITS = CharTokenizer(["one two three"])


def random_log_probs(seed: int, frames: int, labels: int, sharpness: float = 2.0) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=(frames, labels)) * sharpness
    return (values - np.log(np.exp(values).sum(-1, keepdims=True))).astype(np.float32)


def every_text(log_probs: npt.NDArray[np.float32]) -> dict[tuple[int, ...], float]:
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        labels = tuple(label for label, _ in itertools.groupby(path) if label)
        found[labels] = float(np.logaddexp(found.get(labels, -np.inf), sum(log_probs[frame, label] for frame, label in enumerate(path))))
    return found


def said(text: str, tokenizer: CharTokenizer, frames: int = 2, sure: float = 0.9) -> npt.NDArray[np.float32]:
    """Log-probabilities of a text, each label in several frames with a blank behind it."""
    size = len(tokenizer.vocabulary)
    rows = []
    for label in tokenizer.encode(text):
        for wanted in [label] * frames + [0]:
            row = np.full(size, (1 - sure) / (size - 1))
            row[wanted] = sure
            rows.append(row)
    return np.log(np.array(rows)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_a_wide_beam_finds_the_most_probable_texts_of_all(seed: int, frames: int) -> None:
    log_probs = random_log_probs(seed, frames, 4)
    wanted = sorted(every_text(log_probs).items(), key=lambda item: -item[1])[:3]
    found = BeamDecoder(AB, beam_size=2000, beam_threshold=1e6).best(log_probs, 3)
    assert [each.score for each in found] == pytest.approx([score for _, score in wanted], abs=1e-4)
    assert found[0].labels == wanted[0][0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 5]), st.sampled_from([0.3, 1.0, 3.0]))
def test_a_narrow_beam_is_never_less_probable_than_the_best_path(seed: int, beam_size: int, sharpness: float) -> None:
    log_probs = random_log_probs(seed, 20, 4, sharpness)
    (greedy,) = GreedyDecoder()(log_probs[None], np.array([20]))
    (found,) = BeamDecoder(AB, beam_size=beam_size, beam_threshold=3.0)(log_probs[None], np.array([20]))
    best, path = total_log_probs(log_probs, [found, greedy])
    assert best >= path - 1e-6


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.booleans(), st.sampled_from(["ab ", "abc", "a"]))
def test_a_wide_beam_finds_the_best_texts_by_audio_language_model_and_hot_words(seed: int, frames: int, hot: bool, letters: str) -> None:
    tokenizer = CharTokenizer([letters])
    rng = np.random.default_rng(seed)
    model = NGram.estimate([[SPACE if each == " " else each for each in rng.choice(list(letters), 6)] for _ in range(4)], 3)
    words = [word for word in ("ab", "aba", "c") if set(word) <= set(letters)] if hot else []
    log_probs = random_log_probs(seed, frames, len(tokenizer.vocabulary))
    wanted = {}
    for labels, total in every_text(log_probs).items():
        tokens = [SPACE if each == " " else each for each in tokenizer.decode(labels)]
        language = sum(model.log_prob((BEGIN, *tokens[:place]), token) for place, token in enumerate([*tokens, END]))
        bonus = 1.5 * sum(word in words for word in tokenizer.decode(labels).split(" ")) if " " in letters else 0.0
        wanted[labels] = total + 0.7 * language + bonus
    space = tokenizer.vocabulary.index(" ") if " " in letters else -1
    scorer = TokenScorer(names_of(tokenizer), model, 0.7, [tokenizer.encode(word) for word in words if " " in letters], 1.5, space)
    found = PrefixSearch(scorer, 5000, None, 1e6)(log_probs, 5000)
    totals = dict(zip([labels for labels, _ in found], total_log_probs(log_probs, [labels for labels, _ in found]), strict=True))
    assert {labels: totals[labels] + score for labels, score in found} == pytest.approx(wanted, abs=1e-3)


def test_what_lies_behind_an_utterances_end_is_not_decoded() -> None:
    log_probs = np.stack([said("ab", AB), said("ba", AB)])
    decoder = BeamDecoder(AB)
    assert [AB.decode(labels) for labels in decoder(log_probs, np.array([3, 6]))] == ["a", "ba"]
    assert decoder(log_probs[:, :0], np.array([0, 0])) == [[], []]


def lexicon(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def test_only_words_of_the_lexicon_are_found(tmp_path: Path) -> None:
    log_probs = said("twe three oone", DIGITS, sure=0.7)
    (labels,) = BeamDecoder(DIGITS, lexicon=lexicon(tmp_path, "one", "two", "three"))(log_probs[None], np.array([len(log_probs)]))
    assert DIGITS.decode(labels) == "two three one"


def test_a_last_label_in_many_frames_costs_nothing(tmp_path: Path) -> None:
    log_probs = said("one two", DIGITS, frames=6, sure=0.99)
    (best,) = BeamDecoder(DIGITS, lexicon=lexicon(tmp_path, "one", "two", "three")).best(log_probs, 1)
    assert DIGITS.decode(best.labels) == "one two"
    assert best.score > len(log_probs) * math.log(0.99) - 0.1


def test_a_score_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    words = lexicon(tmp_path, "one", "two", "three")
    model = NGram.estimate([["one", "two"], ["two", "three"], ["one", "one"]], 2)
    model.write(tmp_path / "lm.arpa")
    log_probs = said("one two", DIGITS)
    decoder = BeamDecoder(
        DIGITS, lexicon=words, lm=str(tmp_path / "lm.arpa"), lm_weight=0.7, word_score=0.3, hot_words=["two"], hot_word_score=1.5
    )
    for each in decoder.best(log_probs, 3):
        text = DIGITS.decode(each.labels).split()
        history = (BEGIN, *text)
        language = sum(model.log_prob(history[: place + 1], word) for place, word in enumerate((*text, END)))
        (acoustic,) = total_log_probs(log_probs, [each.labels])
        wanted = acoustic + 0.7 * language + 0.3 * len(text) + 1.5 * text.count("two")
        assert each.score == pytest.approx(wanted, abs=1e-3)


def test_a_language_model_decides_between_words_that_sound_alike(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(["to two go home"])
    words = lexicon(tmp_path, "to", "two", "go", "home")
    NGram.estimate([["go", "to"]] * 5 + [["two", "home"]] * 5, 2).write(tmp_path / "lm.arpa")
    plain = said("go two", tokenizer, sure=0.6)
    heard = {
        weight: tokenizer.decode(
            BeamDecoder(tokenizer, lexicon=words, lm=str(tmp_path / "lm.arpa"), lm_weight=weight, beam_threshold=50.0)(
                plain[None], np.array([len(plain)])
            )[0]
        )
        for weight in (0.0, 6.0)
    }
    assert heard == {0.0: "go two", 6.0: "go to"}


def test_a_model_over_tokens_serves_without_a_lexicon(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(["ab"])
    NGram.estimate([list("abab"), list("ababab")], 2).write(tmp_path / "lm.arpa")
    unsure = np.log(np.array([[0.1, 0.9, 0.0], [1.0, 0.0, 0.0], [0.2, 0.41, 0.39], [1.0, 0.0, 0.0]]) + 1e-6).astype(np.float32)
    (alone,) = BeamDecoder(tokenizer)(unsure[None], np.array([4]))
    (together,) = BeamDecoder(tokenizer, lm=str(tmp_path / "lm.arpa"), lm_weight=1.0)(unsure[None], np.array([4]))
    assert (tokenizer.decode(alone), tokenizer.decode(together)) == ("aa", "ab")


@pytest.mark.parametrize("with_lexicon", [True, False])
def test_hot_words_are_preferred(with_lexicon: bool, tmp_path: Path) -> None:
    tokenizer = CharTokenizer(["anna hanna anne"])
    log_probs = said("anne", tokenizer, sure=0.6)
    words = lexicon(tmp_path, "anne", "hanna") if with_lexicon else None
    plain = BeamDecoder(tokenizer, lexicon=words, beam_threshold=30.0)
    hot = BeamDecoder(tokenizer, lexicon=words, hot_words=["anna"], hot_word_score=6.0, beam_threshold=30.0)
    (before,), (after,) = (decoder(log_probs[None], np.array([len(log_probs)])) for decoder in (plain, hot))
    assert (tokenizer.decode(before), tokenizer.decode(after)) == ("anne", "anna")


def test_a_hot_word_whose_score_is_zero_is_a_word_like_others(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(["anna hanna anne"])
    words = lexicon(tmp_path, "anne", "hanna")
    decoder = BeamDecoder(tokenizer, lexicon=words, hot_words=["anna"], hot_word_score=0.0)
    assert tokenizer.decode(decoder.best(said("anna", tokenizer, sure=0.6), 1)[0].labels) == "anna"
    log_probs = random_log_probs(12, 8, len(AB.vocabulary))  # a narrow beam misses the greedy answer here, which is then ranked as well
    hot = BeamDecoder(AB, beam_size=1, hot_words=["ab"], hot_word_score=0.0)
    assert hot.best(log_probs, 1) == BeamDecoder(AB, beam_size=1).best(log_probs, 1)


def test_hot_words_are_preferred_also_where_nothing_parts_words() -> None:
    tokenizer = CharTokenizer(["今天天气很好"])
    log_probs = said("今天天好", tokenizer, frames=1, sure=0.98)
    log_probs[-2, tokenizer.encode("好气")] = math.log(0.6), math.log(0.3)
    found = {
        score: tokenizer.decode(BeamDecoder(tokenizer, hot_words=["天气"], hot_word_score=score).best(log_probs, 1)[0].labels)
        for score in (0.1, 2.0)
    }
    assert found == {0.1: "今天天好", 2.0: "今天天气"}


def test_a_model_without_a_table_is_asked_for_the_labels_that_may_follow() -> None:
    ngrams = NGram.estimate([list("abba"), list("abab"), list("bb")], 3)
    names = names_of(CharTokenizer(["ab"]))
    asked = []

    class Remote:
        order = 3

        def log_prob(self, history: Gram, word: str) -> float:
            asked.append(word)
            return ngrams.log_prob(history, word)

        def __contains__(self, word: str) -> bool:
            return word in ngrams

    log_probs = random_log_probs(1, 8, 3)
    remote, table = (PrefixSearch(TokenScorer(names, model, 0.7, [[1, 2]], 1.0), 20, None, 20.0) for model in (Remote(), ngrams))
    found, wanted = remote(log_probs, 5), table(log_probs, 5)
    assert [labels for labels, _ in found] == [labels for labels, _ in wanted]
    assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-6)
    assert "" not in asked


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_give_no_text(value: float) -> None:
    log_probs = said("ab", AB)
    log_probs[1, 2] = value
    (found,) = BeamDecoder(AB).best(log_probs, 1)
    assert (found.labels, found.score) == ((), -math.inf)


def test_a_hot_word_of_several_words_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'ab ba' is not one word\n +-> give each by itself: decoder.hot_words=\[ab,ba\]"):
        BeamDecoder(AB, hot_words=["ab ba"])
    for word in ("", " ", " ab "):
        with pytest.raises(ConfigError, match=f"'{word}' is not one word"):
            BeamDecoder(AB, hot_words=[word])


def test_a_long_hot_word_does_not_push_out_what_is_said() -> None:
    tokenizer = CharTokenizer(["die donaudampfschifffahrtsgesellschaftskapitaen faehrt"])
    text = "die donaudampfschifffahrtsgesellschaft faehrt"
    (found,) = BeamDecoder(tokenizer, hot_words=["donaudampfschifffahrtsgesellschaftskapitaen"]).best(said(text, tokenizer, sure=0.8), 1)
    assert tokenizer.decode(found.labels) == text


@pytest.mark.parametrize(
    ("hot", "text", "occurrences"),
    [(["aab"], "aaab", 1), (["bc", "abd"], "abc", 1), (["ab", "abcd"], "abc", 1), (["ab", "b"], "abab", 4), (["abc"], "abab", 0)],
)
def test_hot_words_count_wherever_they_stand_where_nothing_parts_words(hot: list[str], text: str, occurrences: int) -> None:
    tokenizer = CharTokenizer(["abcd"])
    scorer = TokenScorer(names_of(tokenizer), None, 1.0, [tokenizer.encode(word) for word in hot], 2.0)
    state, score = 0, 0.0
    for label in tokenizer.encode(text):
        score += float(scorer.scores(np.array([state]), np.array([label]))[0, 0])
        state = scorer.follow(state, label)
    assert score + scorer.end(state) == pytest.approx(2.0 * occurrences)


def test_states_that_were_forgotten_change_no_later_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = NGram.estimate([list("abba"), list("abab"), list("bb")], 3)
    search = PrefixSearch(TokenScorer(names_of(CharTokenizer(["ab"])), model, 0.7), 20, None, 20.0)
    before = [search(random_log_probs(seed, 8, 3), 5) for seed in range(3)]
    monkeypatch.setattr("speechtrain.decode.prefix_search._BYTES", 0)
    assert [search(random_log_probs(seed, 8, 3), 5) for seed in range(3)] == before


def test_labels_that_may_follow_can_be_limited_to_the_most_probable_of_a_frame() -> None:
    search = PrefixSearch(TokenScorer(["", "a", "b"], None, 1.0), 20, 1, 100.0)
    log_probs = np.log(np.array([[0.2, 0.5, 0.3], [0.2, 0.3, 0.5]], dtype=np.float32))
    assert {labels for labels, _ in search(log_probs, 20)} == {(), (1,), (2,), (1, 2)}


def test_hot_words_of_pieces_begin_where_words_do() -> None:
    names = ["", "▁an", "na", "▁na", "n"]
    scorer = TokenScorer(names, None, 1.0, [[1, 2]], 2.0, starts=frozenset([1, 3]))
    behind = scorer.follow(0, 1)
    assert scorer.scores(np.array([0, behind]), np.array([1, 2, 3, 4])).tolist() == pytest.approx(
        np.array([[0.2, 0.0, 0.0, 0.0], [0.0, 0.2, -0.2, -0.2]])
    )
    assert scorer.end(scorer.follow(behind, 2)) == pytest.approx(2.0 - 0.4)


def test_a_part_of_a_hot_word_gains_nothing() -> None:
    tokenizer = CharTokenizer(["anna hanna anne"])
    log_probs = said("anne", tokenizer, sure=0.99)
    (plain,) = BeamDecoder(tokenizer).best(log_probs, 1)
    (hot,) = BeamDecoder(tokenizer, hot_words=["anneh"], hot_word_score=3.0).best(log_probs, 1)
    assert hot.labels == plain.labels
    assert hot.score == pytest.approx(plain.score, abs=1e-4)


def test_the_decoder_ranks() -> None:
    assert isinstance(BeamDecoder(AB), RankingDecoder)
    assert not isinstance(GreedyDecoder(), RankingDecoder)
    found = BeamDecoder(AB, beam_threshold=50.0).best(random_log_probs(3, 12, 4, 0.5), 5)
    assert len({each.labels for each in found}) == 5
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["one", "zwei"], ":2: 'zwei' needs 'z', 'i', which the model has no token for"),
        (["one\to n x"], ":1: 'one' needs 'x'"),
        (["", " "], "holds no words"),
    ],
)
def test_a_lexicon_that_the_model_cannot_spell_is_refused_by_line(lines: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        read_lexicon(Path(lexicon(tmp_path, *lines)), DIGITS)


def test_a_lexicon_parted_by_blanks_is_a_spelling_where_it_can_be_nothing_else(tmp_path: Path) -> None:
    found = read_lexicon(Path(lexicon(tmp_path, "one o n e", "to  t  o", "one t")), DIGITS)
    labels = DIGITS.encode
    assert found == {"one": [labels("one")], "to": [labels("to")], "one t": [labels("one t")]}


def test_a_lexicon_may_spell_words_in_several_ways(tmp_path: Path) -> None:
    found = read_lexicon(Path(lexicon(tmp_path, "one\to n e", "one\tw o n", "two")), DIGITS)
    assert {word: len(ways) for word, ways in found.items()} == {"one": 2, "two": 1}


def test_words_that_a_language_model_lacks_are_told_and_that_they_can_never_come_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = lexicon(tmp_path, "one", "two", "three")
    NGram.estimate([["one", "three"]], 2).write(tmp_path / "lm.arpa")
    BeamDecoder(DIGITS, lexicon=words, lm=str(tmp_path / "lm.arpa"))
    assert caplog.text.endswith("lm.arpa lacks 1 of 3 words: two\n")
    arpa = (tmp_path / "lm.arpa").read_text()
    kept = [line for line in arpa.splitlines() if "<unk>" not in line]
    (tmp_path / "lm.arpa").write_text("\n".join(kept).replace("ngram 1=5", "ngram 1=4"))
    BeamDecoder(DIGITS, lexicon=words, lm=str(tmp_path / "lm.arpa"))
    assert caplog.text.endswith("lm.arpa lacks 1 of 3 words: two; without <unk> in it they can never come out\n")


def test_a_language_model_about_other_words_is_refused(tmp_path: Path) -> None:
    NGram.estimate([["vier", "acht"]], 2).write(tmp_path / "lm.arpa")
    with pytest.raises(ConfigError, match="knows none of the 3 words"):
        BeamDecoder(DIGITS, lexicon=lexicon(tmp_path, "one", "two", "three"), lm=str(tmp_path / "lm.arpa"))
    with pytest.raises(ConfigError, match="'zoe' needs 'z'"):
        BeamDecoder(DIGITS, hot_words=["zoe"])
