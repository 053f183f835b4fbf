"""N-gram language models: estimated, written, read."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest

from speechtrain.decode.ngram import BEGIN, END, UNKNOWN, NGram, open_language_model
from speechtrain.errors import DataError

TEXT = ["the cat sat", "the cat ran", "a dog sat", "the dog ran home", "a cat ran home", "the cat sat", "dogs sat"]
SENTENCES = [line.split() for line in TEXT]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_of_all_words_sum_to_one_behind_any_history(order: int) -> None:
    model = NGram.estimate(SENTENCES, order)
    words = {word for words in SENTENCES for word in words} | {END, UNKNOWN}
    for history in [(BEGIN,), ("the",), ("the", "cat"), ("never", "seen"), (BEGIN, "a")]:
        assert sum(math.exp(model.log_prob(history, word)) for word in words) == pytest.approx(1.0)


def test_a_longer_history_makes_the_text_itself_more_probable() -> None:
    perplexities = [NGram.estimate(SENTENCES, order).perplexity(SENTENCES) for order in (1, 2, 3)]
    assert perplexities == sorted(perplexities, reverse=True)


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_an_arpa_file_gives_the_same_probabilities(name: str, tmp_path: Path) -> None:
    model = NGram.estimate(SENTENCES, 3)
    model.write(tmp_path / "lm.arpa")
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "lm.arpa").read_bytes()))
    again = open_language_model(tmp_path / name)
    for history in [(BEGIN,), ("the", "cat"), ("x", "dog")]:
        for word in ("sat", "home", END, "unheard"):
            assert again.log_prob(history, word) == pytest.approx(model.log_prob(history, word), abs=1e-5)
    assert "cat" in again
    assert "unheard" not in again


def test_kenlm_reads_the_file_and_finds_the_same(tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm")
    model = NGram.estimate(SENTENCES, 3)
    model.write(tmp_path / "lm.arpa")
    theirs = kenlm.Model(str(tmp_path / "lm.arpa"))
    for line in ["the cat sat", "a dog ran home", "dogs cat unheard"]:
        history, total = (BEGIN,), 0.0
        for word in (*line.split(), END):
            total += model.log_prob(history, word)
            history = (*history, word)
        assert theirs.score(line) * math.log(10) == pytest.approx(total, abs=1e-4)


ARPA = "\\data\\\nngram 1=2\nngram 2=1\n\n\\1-grams:\n-0.5\ta\t-0.3\n-0.7\tb\n\n\\2-grams:\n-0.1\ta b\n\n\\end\\\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "holds no n-grams"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\nminus a\n\\end\\\n", ":5: is no line of an ARPA file"),
        ("\\data\\\n\n\\2-grams:\n-1.0 a\n\\end\\\n", ":3: is no line of an ARPA file"),
        (ARPA.replace("-0.5", "nan"), ":6: is no line of an ARPA file .log10 of a probability must be from -10000 to 0, received nan"),
        (ARPA.replace("-0.5", "-inf"), "received -inf"),
        (ARPA.replace("-0.5", "-٣"), "received -٣"),
        (ARPA.replace("-0.5", "0.1"), "received 0.1"),
        (ARPA.replace("-0.3", "inf"), "log10 of a weight must be from -10000 to 100, received inf"),
        (ARPA.replace("ngram 1=2", "ngram 1=1000000000000"), "holds 2 n-grams of 1, 1 n-grams of 2, and states 1000000000000 n-grams of 1"),
        (ARPA.replace("ngram 2=1\n", ""), "holds 2 n-grams of 1, 1 n-grams of 2, and states 2 n-grams of 1"),
        (ARPA.replace("ngram 2=1", "ngram 1=2"), ":3: is no line of an ARPA file"),
        (ARPA.replace("-0.7\tb", "-0.7\ta"), ":7: is no line of an ARPA file .'a' is there twice"),
        (ARPA.replace("2-grams:", "99999999999-grams:"), ":9: is no line of an ARPA file .section .2-grams: is expected, received"),
        (ARPA.replace("2=1", "3=1").replace("2-grams:", "3-grams:").replace("a b", "a b a"), ":9: .*section .2-grams: is expected"),
        (ARPA.replace("a b", "a z"), ":10: .*'z' is not among the 1-grams"),
        (ARPA + ARPA, ":13: .*nothing may follow"),
        (ARPA.replace("\\end\\", ""), r"ends in line 1\d without"),
        (ARPA + "\0" * (1 << 25), ":13: is longer than 16 MiB"),
    ],
)
def test_a_file_that_is_no_arpa_file_is_named_with_its_line(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(content)
    with pytest.raises(DataError, match=told):
        NGram.read(tmp_path / "lm.arpa")


def test_text_without_words_and_a_missing_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no words"):
        NGram.estimate([[], []], 2)
    with pytest.raises(DataError, match="no such language model"):
        open_language_model(tmp_path / "none.arpa")


def test_a_packed_file_is_read_to_its_checksum_and_unpacks_to_no_more_than_a_text(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa.gz"
    packed = gzip.compress(ARPA.encode())
    path.write_bytes(packed)
    assert NGram.read(path).order == 2
    wrong, deflate = bytearray(packed), bytearray(packed)
    wrong[-8] ^= 1
    deflate[20] ^= 255
    for content, told in (
        (wrong, "CRC check failed"),
        (deflate, r"lm\.arpa\.gz"),
        (packed[:-9], "cannot be read"),
        (b"text", "Not a gzipped file"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=told):
            NGram.read(path)
    path.write_bytes(gzip.compress(ARPA.encode() + (b" " * 100_000 + b"\n") * 1300))
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        NGram.read(path)
