"""Pages hold what they should, escape what comes from data, and pictures can be drawn of anything."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from speechtrain.decode.align import align, greedy_spans
from speechtrain.files import numbered
from speechtrain.report.errors import Calibration, Utterance
from speechtrain.report.figures import Posteriors, calibration_figure, history_figure, save_png, svg
from speechtrain.report.pages import Example, choose_examples, error_report, fields_shown


def page(utterances: list[Utterance], **changes: object) -> str:
    options = {"title": "t", "split": "test", "bad": [Example(each) for each in utterances], "fine": [], "tokens": list, "draws": 20}
    return error_report(utterances, **{**options, **changes})  # type: ignore[arg-type]


def test_what_comes_from_data_cannot_run_in_the_page() -> None:
    evil = "<script>alert(1)</script>"
    text = page([Utterance(evil, evil, f"b {evil}", 1.0, fields={"speaker": evil}), Utterance("b", "x", "y", 2.0, fields={"speaker": "s"})])
    assert evil not in text
    assert "&lt;script&gt;" in text


def test_a_page_of_nothing_wrong_and_one_of_nothing_at_all_can_be_made() -> None:
    assert "No utterance has an error." in page([Utterance("a", "one", "one")], bad=[])
    assert "0 utterances" in page([], bad=[])
    assert "infinity" not in page([Utterance("a", "", "one")])


def test_sounds_and_pictures_are_inside_the_page() -> None:
    log_probs = np.log(np.full((6, 3), 1 / 3, dtype=np.float32))
    shown = Posteriors(log_probs, ["", "a", "$b"], [("a", 0, 2), ("$b", 3, 5)], 50.0)
    one = Utterance("a", "a", "b", 0.1)
    text = page([one], bad=[Example(one, b"sound", posteriors=shown)])
    assert "data:audio/mpeg;base64,c291bmQ=" in text
    assert text.count("<svg") >= 1


def test_where_the_fewest_errors_are_fewer_than_sclites_the_page_says_so() -> None:
    found = page([Utterance("a", "c e e b b", "b b w v w")])
    assert re.search(r'id="errors">6<', found)
    assert "fewest errors has 5 (100.00 %)" in found
    assert "fewest errors" not in page([Utterance("a", "c e e b b", "c e b b")])


def test_examples_are_the_worst_and_some_that_are_right() -> None:
    spoken = [Utterance(str(index), "a b c", "a b c" if index % 2 else "a", 1.0) for index in range(10)]
    bad, fine, shown = choose_examples(spoken, wrong=3, posteriors=4)
    assert [each.id for each in bad] == ["0", "2", "4"]
    assert [each.id for each in fine] == ["1", "3"]
    assert shown == {"0", "2", "1", "3"}
    assert choose_examples(spoken[1::2], wrong=3, posteriors=4)[2] == {"1", "3", "5", "7"}
    assert choose_examples(spoken[::2], wrong=3, posteriors=2)[2] == {"0", "2"}
    assert choose_examples(spoken, wrong=0, posteriors=0) == ([], [], set())


def test_fields_are_short_texts_and_numbers() -> None:
    assert fields_shown({"a": "x", "b": 2, "c": [1], "d": "y" * 99, "e": None}) == {"a": "x", "b": "2"}


def test_a_history_is_drawn_whatever_was_measured_and_the_file_is_whole(tmp_path: Path) -> None:
    epochs = [{"train/loss": 2.0, "train/lr": 0.1}, {"train/loss": 1.0, "val/loss": 1.5, "val/wer": 0.5}, {"train/loss": 0.5}]
    save_png(history_figure(epochs, ("val/wer", 1, 0.5)), tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["history.png"]
    assert svg(history_figure([{"train/loss": 1.0}], None)).startswith("<svg")


def test_spans_follow_the_best_path_and_the_alignment_the_text() -> None:
    probabilities = np.full((8, 3), 0.05, dtype=np.float32)
    for frame, label in enumerate([0, 1, 1, 0, 1, 2, 2, 0]):
        probabilities[frame, label] = 0.9
    log_probs = np.log(probabilities)
    assert [(span.label, span.start, span.end) for span in greedy_spans(log_probs)] == [(1, 1, 3), (1, 4, 5), (2, 5, 7)]
    found = align(log_probs, [1, 1, 2])
    assert found is not None
    assert [(span.label, span.start, span.end) for span in found] == [(1, 1, 3), (1, 4, 5), (2, 5, 7)]
    assert found[0].probability == pytest.approx(0.9)
    assert align(log_probs[:2], [1, 1, 2]) is None
    assert align(log_probs, []) == []


def test_no_name_is_given_twice() -> None:
    taken: set[str] = set()
    assert [numbered(name, taken) for name in ("a", "a", "a_2", "a", "b")] == ["a", "a_2", "a_2_2", "a_3", "b"]


def test_where_nothing_is_wrong_the_page_gives_an_upper_bound() -> None:
    text = page([Utterance(str(number), "one two", "one two") for number in range(50)], bad=[])
    assert "0.00 % – 3.70 %" in text  # z² / (100 + z²), of 100 words
    assert "0.00 % – 7.13 %" in text  # of 50 utterances


def test_error_rates_are_drawn_on_a_logarithmic_axis_unless_all_are_zero() -> None:
    def scales(rate: float, last: float | None = None) -> dict[str, str]:
        last = rate / 10 if last is None else last
        epochs = [{"train/loss": 1.0, "val/wer": rate, "val/exact": 0.5}, {"train/loss": 0.5, "val/wer": last, "val/exact": 0.9}]
        return {axes.get_title(loc="left"): axes.get_yscale() for axes in history_figure(epochs, None).axes}

    assert scales(0.9) == {"loss": "linear", "error rates, %": "log", "rates, %": "linear"}
    assert scales(0.0)["error rates, %"] == "linear"
    assert scales(0.9, 0.0)["error rates, %"] == "symlog"


def test_an_epoch_without_errors_is_drawn() -> None:
    (axes,) = history_figure([{"val/wer": rate} for rate in (0.5, 0.01, 0.0)], ("val/wer", 2, 0.0)).axes
    for line in axes.lines:
        epoch, rate = line.get_xydata()[-1]  # type: ignore[index] # points
        assert (epoch, rate) == (3.0, 0.0)
        place = axes.transAxes.inverted().transform(axes.transData.transform((epoch, rate)))
        assert all(0 <= each <= 1 for each in place)


def test_calibration_is_drawn_with_the_number_of_words_at_each_point() -> None:
    drawn = svg(calibration_figure(Calibration([(0.2, 0.1, 17), (0.9, 0.95, 1234)], 0.05)))
    assert all(f">{text}<" in drawn for text in ("17", "1,234", "calibration error 5.00 % of 1,251 words"))
