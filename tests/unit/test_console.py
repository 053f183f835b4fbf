"""What is printed goes where the streams of the process go at that moment."""

from __future__ import annotations

import io

import pytest

from speechtrain.console import console, errors, printing_to


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
