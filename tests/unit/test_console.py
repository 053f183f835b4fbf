"""What is printed goes where the streams of the process go at that moment."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from speechtrain.console import console, errors, print_table, printing_to
from speechtrain.errors import ConfigError, Problem, did_you_mean


def test_what_is_printed_behind_a_job_goes_to_the_streams_of_that_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    with printing_to(io.StringIO()):
        console.print("of the job")
    later = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stdout", later[0])
    monkeypatch.setattr("sys.stderr", later[1])
    console.print("result")
    errors.print("warning")
    assert [each.getvalue() for each in later] == ["result\n", "warning\n"]


def test_what_a_job_prints_goes_to_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    with printing_to(file):
        console.print("result")
        errors.print("warning")
    assert file.getvalue() == "result\nwarning\n"
    assert capsys.readouterr() == ("", "")


def test_lines_of_a_table_in_a_pipe_end_without_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    piped = io.StringIO()
    monkeypatch.setattr("sys.stdout", piped)
    print_table(table_of([["train", "104,014", "16000 Hz"], ["validation", "2", ""]]))
    assert piped.getvalue() == "split       utterances  rate\ntrain       104,014     16000 Hz\nvalidation  2\n"


def test_a_table_that_is_too_wide_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    piped = io.StringIO()
    monkeypatch.setattr("sys.stdout", piped)
    monkeypatch.setattr(console, "_width", 24)
    print_table(table_of([["train", "104,014", "16000 Hz"]]), turns=True)
    assert piped.getvalue() == "split          train\nutterances   104,014\nrate        16000 Hz\n"


def table_of(rows: list[list[str]]) -> Table:
    table = Table("split", "utterances", "rate", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def test_of_many_names_a_hint_lists_the_nearest_and_says_how_many_others_there_are() -> None:
    columns = [f"column_{number}" for number in range(500)]
    hint = did_you_mean("colum_7", columns)
    assert hint.startswith("did you mean 'column_7'?  (there is: ")
    assert hint.endswith(" and 494 more)")
    assert len(hint) < 150
    assert did_you_mean("b", ["a", "c"]) == "there is: a, c"


def test_what_is_wrong_with_a_word_of_the_command_line_is_not_said_to_be_in_the_config() -> None:
    assert str(ConfigError([Problem("runs", "there is no run 'x'")])).startswith("1 problem:\n")
    assert str(ConfigError([Problem("runs", "none"), Problem("model.size", "2")])).startswith("2 problems in the config:\n")
