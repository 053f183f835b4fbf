"""Tests of the files that `align` writes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechtrain.decode.align import Word
from speechtrain.errors import DataError, UserError
from speechtrain.inference.alignment import Alignment, write

FORMATS = ("textgrid", "ctm", "json")


def said(*words: str) -> Alignment:
    """Return an alignment with words of a tenth of a second."""
    times = tuple(Word(word, 0.1 * index, 0.1 * index + 0.1, 0.9) for index, word in enumerate(words))
    return Alignment(times, times, 1.0, -0.1, 0.1, " ".join(words))


def test_a_file_that_was_corrected_by_hand_is_not_written_over_by_any_later_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for word in ("one", "two", "three"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            write(iter([(name, word, said(word)) for name in ("a", "b")]), tmp_path, FORMATS)
        assert f'"{word}"' in (tmp_path / "b.TextGrid").read_text()
        assert word in (tmp_path / "words.ctm").read_text()
        if word == "one":
            (tmp_path / "a.TextGrid").write_text("corrected")
            assert not caplog.messages
        else:
            assert (tmp_path / "a.TextGrid").read_text() == "corrected"
            assert len(caplog.messages) == 1
            assert caplog.messages[0].endswith(": a.TextGrid")


def test_the_textgrid_of_another_recording_stays_and_is_still_known_as_one_of_ours(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(iter([(name, "one", said("one"))]), tmp_path, ["textgrid"], keep=True)
    assert {path.name for path in tmp_path.glob("*.TextGrid")} == {"a.TextGrid", "b.TextGrid"}
    write(iter([("c", "one", said("one"))]), tmp_path, ["textgrid"])
    assert {path.name for path in tmp_path.glob("*.TextGrid")} == {"c.TextGrid"}


def test_two_calls_at_once_do_not_write_into_one_folder(tmp_path: Path) -> None:
    def during() -> Iterator[tuple[str, str, Alignment]]:
        with pytest.raises(UserError, match=r"another call of align writes into .*\n    -> wait until it has ended, or give out="):
            write(iter([("b", "one", said("one"))]), tmp_path, ["textgrid"])
        yield "a", "one", said("one")

    write(during(), tmp_path, ["textgrid"])
    write(iter([("b", "one", said("one"))]), tmp_path, ["textgrid"])
    assert {path.name for path in tmp_path.glob("*.TextGrid")} == {"b.TextGrid"}


def test_files_that_the_list_of_an_earlier_version_names_are_replaced_unless_they_are_newer(tmp_path: Path) -> None:
    (tmp_path / "old.TextGrid").write_text("old")
    (tmp_path / ".alignments").write_text("old.TextGrid\ncorrected.TextGrid\n")
    (tmp_path / "corrected.TextGrid").write_text("corrected")
    for seconds, name in enumerate(("old.TextGrid", ".alignments", "corrected.TextGrid")):
        os.utime(tmp_path / name, (seconds, seconds))
    write(iter([("a", "one", said("one")), ("corrected", "one", said("one"))]), tmp_path, ["textgrid"])
    assert {path.name for path in tmp_path.glob("*.TextGrid")} == {"a.TextGrid", "corrected.TextGrid"}
    assert (tmp_path / "corrected.TextGrid").read_text() == "corrected"


def test_ids_longer_than_names_of_files_have_files_of_their_own(tmp_path: Path) -> None:
    written = write(iter([(400 * "x" + end, "one", said(f"one{end}")) for end in "abb"]), tmp_path, ["textgrid"])
    files = sorted(tmp_path.glob("*.TextGrid"))
    assert written.count == len(files) == 3
    assert sorted(text for path in files for text in ("onea", "oneb") if f'"{text}"' in path.read_text()) == ["onea", "oneb", "oneb"]


def test_lists_are_in_the_order_of_the_ids_however_the_utterances_come(tmp_path: Path) -> None:
    write(iter([(name, "one two", said("one", "two")) for name in ("b", "é", "a b", "a")]), tmp_path, ["ctm", "json"])
    ids = [json.loads(line)["id"] for line in (tmp_path / "alignments.jsonl").read_text().splitlines()]
    assert ids == ["a", "a b", "b", "é"]
    assert [line.split(" 1 ")[0] for line in (tmp_path / "words.ctm").read_text().splitlines()[::2]] == ["a", "a_b", "b", "é"]


def test_a_call_that_fails_leaves_no_mix_of_its_files_and_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[tuple[str, str, Alignment]]:
        yield "a", "two", said("two")
        raise DataError("the disk of the corpus is gone")

    write(iter([(name, "one", said("one")) for name in "ab"]), tmp_path, FORMATS)
    with pytest.raises(DataError):
        write(broken(), tmp_path, FORMATS)
    assert '"one"' in (tmp_path / "a.TextGrid").read_text()
    (unfinished,) = tmp_path.glob("unfinished-*")
    assert {path.name for path in unfinished.iterdir()} == {"a.TextGrid", "words.ctm", "alignments.jsonl"}
    assert '"two"' in (unfinished / "a.TextGrid").read_text()
    assert " two " in (unfinished / "words.ctm").read_text()
    rename = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "words.ctm":
            raise OSError(28, "No space left on device", str(target))
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(UserError):
            write(iter([("a", "two", said("two")), ("c", "two", said("two"))]), tmp_path, FORMATS)
    write(iter([("c", "three", said("three"))]), tmp_path, FORMATS)
    assert {path.name for path in tmp_path.iterdir()} == {"c.TextGrid", "words.ctm", "alignments.jsonl", ".alignments"}
    assert '"three"' in (tmp_path / "c.TextGrid").read_text()


def test_what_earlier_calls_have_left_is_named_and_removed_by_the_next_that_succeeds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Iterator[tuple[str, str, Alignment]]:
        yield "a", "two", said("two")
        raise DataError("the disk of the corpus is gone")

    ended, running = tmp_path / f"unfinished-{2**31 - 1}-x", tmp_path / f"unfinished-{os.getppid()}-x"
    for folder in (ended, running):
        folder.mkdir()
        (folder / "a.TextGrid").write_text("of a call that was killed, or runs")
    with pytest.raises(DataError):
        write(broken(), tmp_path, FORMATS)
    (own,) = tmp_path.glob(f"unfinished-{os.getpid()}-*")
    caplog.clear()
    write(iter([("a", "one", said("one"))]), tmp_path, FORMATS)
    (message,) = caplog.messages
    assert str(ended) in message
    assert str(own) in message
    assert str(running) not in message
    assert list(tmp_path.glob("unfinished-*")) == [running]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "/cache/x"), OSError(5, "Input/output error", "/corpus/a.wav")])
def test_errors_of_reading_are_not_told_as_errors_of_the_results(tmp_path: Path, error: OSError) -> None:
    def broken() -> Iterator[tuple[str, str, Alignment]]:
        yield "a", "two", said("two")
        raise error

    with pytest.raises(OSError, match=str(error.strerror)) as raised:
        write(broken(), tmp_path, FORMATS)
    assert raised.value is error


def test_results_that_cannot_be_written_are_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)\n.*set out to a folder on another disk"):
        write(iter([("a", "two", said("two"))]), tmp_path, FORMATS)
    assert list(tmp_path.iterdir()) == []
