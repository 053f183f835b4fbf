"""Normalisation of transcripts, and tokenizers that know more than characters."""

from __future__ import annotations

import pickle
import unicodedata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import TINY, prepared
from hypothesis import given, settings
from hypothesis import strategies as st

from speechtrain.data.text.base import count_repeats
from speechtrain.data.text.normalize import changes_nothing, normalizer, visible
from speechtrain.data.text.phonemes import PhonemeTokenizer, pronounce_words, read_lexicon
from speechtrain.data.text.subwords import BpeTokenizer
from speechtrain.data.text.tokenizers import CharTokenizer, WordTokenizer, case_step
from speechtrain.errors import ConfigError, DataError

SCRIPTS = (
    "mǎ má mà mā",
    "αυτό είναι ελληνικά",
    "größe über äpfel",
    "שלום עולם",
    "السلام عليكم",
    "नमस्ते दुनिया",
    "tiếng việt có dấu",
    "n̥a k̓at x̌ʷəʔ",
)
"""Tone marks, Greek, umlauts, right-to-left and combining scripts."""


@pytest.mark.parametrize("make", [CharTokenizer, WordTokenizer, lambda texts: BpeTokenizer(texts, vocab_size=120)])
@pytest.mark.parametrize("form", ["nfc", "nfd"])
def test_all_scripts_survive_the_round_trip(make, form: str) -> None:  # type: ignore[no-untyped-def]
    normalize = normalizer([form, "spaces"])
    texts = [normalize(text) for text in SCRIPTS]
    tokenizer = make(texts)
    for text, raw in zip(texts, SCRIPTS, strict=True):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert unicodedata.normalize("NFC", text) == unicodedata.normalize("NFC", raw)
        assert tokenizer.unknown(text) == []
    again = type(tokenizer)(vocabulary=tokenizer.vocabulary)
    assert [again.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abcdefgh é", min_size=3), min_size=2, max_size=8))
def test_pieces_are_the_same_after_saving_as_names(texts: list[str]) -> None:
    kept = [" ".join(text.split()) for text in texts if text.split()]
    if not kept:
        return
    tokenizer = BpeTokenizer(kept, vocab_size=40)
    again = pickle.loads(pickle.dumps(BpeTokenizer(vocabulary=tokenizer.vocabulary)))
    for text in kept:
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == text
    assert tokenizer.vocabulary[0] == ""
    assert 0 not in {label for text in kept for label in tokenizer.encode(text)}


def test_pieces_are_fewer_than_characters_and_come_from_the_training_text_alone() -> None:
    texts = ["the cat sat on the mat"] * 5 + ["the hat"] * 3
    tokenizer = BpeTokenizer(texts, vocab_size=30)
    assert len(tokenizer.encode(texts[0])) < len(texts[0]) / 2
    assert tokenizer.unknown("the zoo") == ["z"] or "z" in "".join(tokenizer.unknown("the zoo"))
    with pytest.raises(DataError, match=r"(?s)vocab_size=3.*the text has \d+ characters"):
        BpeTokenizer(texts, vocab_size=3)


@pytest.mark.parametrize(
    ("steps", "text", "wanted"),
    [
        (["lowercase"], "ÀÉ Straße", "àé straße"),
        (["casefold"], "Straße", "strasse"),
        (["uppercase"], "über", "ÜBER"),
        (["quotes", "punctuation"], "“Don’t stop,” she said — well-known 'tis!", "Don't stop she said well-known tis"),
        (["punctuation"], "नमस्ते, दुनिया।", "नमस्ते दुनिया"),
        (["diacritics"], "São Tomé ü", "Sao Tome u"),
        (["nfkc"], "ﬁne ２", "fine 2"),
        (["numbers:en"], "1,234 men and 3.5 m", "one thousand, two hundred and thirty-four men and three point five m"),
        (["numbers:de"], "42 Hunde", "zweiundvierzig Hunde"),
        (["numbers:en"], "on 24.12.2025, 1.2.3", "on twenty-four twelve two thousand and twenty-five, one two three"),
        (["numbers:en"], "7" * 400, " ".join(["seven"] * 400)),
        (["numbers:id"], "1.5 kg", "satu lima kg"),
        (["numbers:am"], "1234567", "አንድ ሁለት ሦስት አራት አምስት ስድስት ሰባት"),
        (["replace:<[a-z]+>:", "spaces"], "uh <noise> yes <laugh>", "uh yes"),
        (["replace:é:e", "lowercase"], "ÉTÉ été", "été ete"),
    ],
)
def test_steps_are_done_in_their_order(steps: list[str], text: str, wanted: str) -> None:
    assert normalizer(steps)(text) == wanted


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("lowcase", "there is no step 'lowcase'(?s:.*)lowercase"),
        ("numbers:xx", "num2words has no language 'xx'"),
        ("replace:[:x", "no regular expression"),
        (r"replace:(a):\9", "invalid group reference 9"),
        (r"replace:(?P<a>a):\g<b>", "unknown group name 'b'"),
        ("replace:" + "(" * 3000 + ")" * 3000 + ":b", "no regular expression"),
    ],
)
def test_a_step_that_is_unknown_is_refused(step: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        normalizer([step])


def test_transcripts_are_normalised_before_anything_sees_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = prepared([*TINY, "data.normalize=[uppercase,'replace:[ABC]+:']"])
    assert set("".join(data.tokenizer.vocabulary)) <= set("DEFGH")
    everything = [cut.text for cuts in data.corpus.splits.values() for cut in cuts]
    assert all(text and set(text) <= set("DEFGH") for text in everything)
    assert "by data.normalize" in caplog.text
    assert data.skipped > 0


LEXICON = """;;; a remark
SEVEN  S EH1 V AH0 N
ZERO  Z IH1 R OW0
ZERO(2)  Z IY1 R OW0
one\tW AH1 N # the number
"""


def test_a_lexicon_gives_phonemes_without_stress(tmp_path: Path) -> None:
    path = tmp_path / "cmudict.dict"
    path.write_text(LEXICON)
    tokenizer = PhonemeTokenizer(["seven zero", "ONE"], lexicon=str(path))
    assert tokenizer.vocabulary == ["", "AH", "EH", "IH", "N", "OW", "R", "S", "V", "W", "Z"]
    assert tokenizer.decode(tokenizer.encode("zero one")) == "Z IH R OW W AH N"
    assert tokenizer.unknown("one eight zero") == ["eight"]
    assert read_lexicon(path, stress=True)["SEVEN"] == ("S", "EH1", "V", "AH0", "N")
    loaded = PhonemeTokenizer(lexicon=str(tmp_path / "moved away"), vocabulary=tokenizer.vocabulary)
    assert loaded.decode([7, 2]) == "S EH"


def test_a_lexicon_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("ONE W AH N\nTWO\n")
    with pytest.raises(DataError, match=r"lexicon\.txt:2: 'TWO' has no phonemes"):
        read_lexicon(path, stress=False)
    path.write_text(";;; nothing\n")
    with pytest.raises(DataError, match="holds no words"):
        read_lexicon(path, stress=False)


def test_espeak_pronounces_where_there_is_no_lexicon() -> None:
    pytest.importorskip("espeakng_loader")
    assert pronounce_words(["seven"], "en-us") == ["s ˈɛ v ə n"]
    tokenizer = PhonemeTokenizer(["seven zero"], language="en-us")
    assert "ɛ" in tokenizer.vocabulary
    with pytest.raises(DataError, match="eSpeak NG has no such language"):
        PhonemeTokenizer(["seven"], language="xx-none")


def test_words_without_a_pronunciation_are_reported_and_their_utterances_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "lexicon.txt").write_text("".join(f"{char} {char.upper()}1\n" for char in "abcdefg"))
    data = prepared([*TINY, "data.normalize=['replace:(.):\\1 ',spaces]", "tokenizer=phoneme", "tokenizer.lexicon=lexicon.txt"])
    assert data.tokenizer.vocabulary == ["", *"ABCDEFG"]
    assert not any("h" in cut.text for cut in data.corpus.splits["train"])
    assert "the tokenizer has nothing for 'h'" in caplog.text
    assert data.skipped > 0


def test_characters_come_from_the_training_text_and_go_back_to_it() -> None:
    tokenizer = CharTokenizer(["grüße", "δ 語"])
    assert tokenizer.vocabulary[0] == ""
    for text in ("grüße δ 語", "語 δ"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unknown("x grüße") == ["x"]
    assert tokenizer.encode("xg\U0001f600") == tokenizer.encode("g")
    assert tokenizer.decode(tokenizer.encode("xg")) == "g"
    assert CharTokenizer(["AbC"], lowercase=True).vocabulary == ["", "a", "b", "c"]
    assert CharTokenizer(vocabulary=tokenizer.vocabulary).encode("δ") == tokenizer.encode("δ")


class Vowels(CharTokenizer):
    """Has no labels but those of vowels."""

    def labels(self, text: str) -> npt.NDArray[np.int64]:
        """Leave out consonants."""
        return super().labels("".join(char for char in text if char in "aeiou"))

    def unknown(self, text: str) -> list[str]:
        """Miss the letter y."""
        return ["y"] * text.count("y")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("aabé ıIΣσ語\U0001f600"), max_size=12), st.sampled_from(["aab é", "ab語", "xyz", ""]), st.booleans())
def test_many_texts_are_counted_as_each_alone(texts: list[str], known: str, lowercase: bool) -> None:
    for tokenizer in (CharTokenizer([known], lowercase=lowercase), Vowels([known]), WordTokenizer([known])):
        sizes, repeats = tokenizer.count_labels(texts)
        labels = [tokenizer.labels(text) for text in texts]
        assert sizes.tolist() == list(map(len, labels))
        assert repeats.tolist() == list(map(count_repeats, labels))
        assert tokenizer.with_unknown(texts) == [place for place, text in enumerate(texts) if tokenizer.unknown(text)]


def test_a_long_list_of_texts_is_counted_as_each_alone() -> None:
    texts = [f"aab{'bb' * (number % 5)}{'é' if number == 1500 else ''}{'?' if number == 2000 else ''}" for number in range(2500)]
    tokenizer = CharTokenizer(texts[:1800])
    assert tokenizer.vocabulary == ["", "a", "b", "é"]
    assert tokenizer.with_unknown(texts) == [2000]
    sizes, repeats = tokenizer.count_labels(iter(texts))
    assert (sizes[2000], repeats[2000]) == (3, 1)
    assert int(repeats.sum()) == sum(count_repeats(tokenizer.labels(text)) for text in texts)


def test_repeats_are_equal_neighbours() -> None:
    assert [count_repeats(np.array(labels)) for labels in ([], [1], [1, 1, 1], [1, 2, 2, 1])] == [0, 0, 2, 1]


@pytest.mark.parametrize(
    ("step", "text", "wanted"),
    [
        ("invisible", "so\u00adft\u200b\ufeff \u202aone\u200d\u2764\ufe0f", "soft one\u2764"),
        ("lowercase", "\u0130I", "i\u0307i"),
        ("lowercase:tr", "\u0130stanbul ILIK", "istanbul \u0131l\u0131k"),
        ("uppercase:az", "istanbul \u0131l\u0131k", "\u0130STANBUL ILIK"),
    ],
)
def test_unseen_characters_and_dotted_letters_have_steps(step: str, text: str, wanted: str) -> None:
    assert normalizer([step])(text) == wanted


def test_characters_that_are_not_seen_have_names() -> None:
    shown = "a<SOFT HYPHEN>b c<ZERO WIDTH SPACE><NO-BREAK SPACE><U+0007><VARIATION SELECTOR-16>"
    assert visible("a\u00adb c\u200b\u00a0\x07\ufe0f") == shown
    assert visible("\u0307") == "<COMBINING DOT ABOVE>"
    assert visible("e\u0301 \u00fc\u4e00") == "e\u0301 \u00fc\u4e00"


def test_tokens_in_the_other_case_are_brought_into_that_of_the_vocabulary() -> None:
    assert case_step(["a", "b"], ["", "A", "B"]) == "uppercase"
    assert case_step(["A"], ["", "a", "b"]) == "lowercase"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("ab \n\t\x1cé", max_size=4), max_size=4),
    st.lists(st.sampled_from(["nfc", "nfkd", "spaces", "lowercase", "diacritics"]), max_size=2),
)
def test_steps_that_plainly_change_nothing_do_not(texts: list[str], steps: list[str]) -> None:
    if changes_nothing(steps, texts):
        assert list(map(normalizer(steps), texts)) == texts
    assert not changes_nothing(steps, ["a  b"])
    assert changes_nothing(["nfc", "spaces"], ["a b", "", "c"])
