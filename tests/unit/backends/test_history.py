"""One history for both backends: latest, best, when, average, whether it still improves; a resumed run goes on with it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from speechtrain.backends.callbacks import Control
from speechtrain.training.history import History, read_history


def direction(metric: str) -> str:
    return {"wer": "minimize", "exact": "maximize"}[metric.rpartition("/")[2]]


def filled(path: Path | None = None) -> History:
    one = History(direction, path)  # type: ignore[arg-type]
    one.on_train_start(5, 0)
    for epoch, (wer, exact) in enumerate([(0.9, 0.1), (0.4, 0.5), (0.5, 0.7), (math.nan, 0.7)]):
        one.on_epoch_end(epoch, {"val/wer": wer, "val/exact": exact}, Control())
    return one


def test_best_knows_which_way_is_better_and_when_it_was() -> None:
    one = filled()
    assert one.best("val/wer") == (1, 0.4)
    assert one.best("val/exact") == (3, 0.7)  # the last of equals
    assert one.best("test/wer") is None
    with pytest.raises(KeyError):
        one.best("val/lr")


def test_latest_and_average_leave_out_what_is_no_number() -> None:
    one = filled()
    assert one.latest("val/wer") == 0.5
    assert one.average("val/wer", 2) == pytest.approx(0.45)
    assert one.latest("val/other") is None
    assert one.average("val/other", 3) is None


def test_improved_within_counts_epochs_from_the_last() -> None:
    one = filled()
    assert not one.improved_within("val/wer", 2)
    assert one.improved_within("val/wer", 3)
    assert not one.improved_within("val/exact", 1)  # it was as good before
    assert one.improved_within("val/exact", 2)
    assert not one.improved_within("test/wer", 9)


def test_a_resumed_run_goes_on_with_the_epochs_before_and_drops_those_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    filled(path)
    again = History(direction, path)  # type: ignore[arg-type]
    again.on_train_start(5, 2)
    again.on_epoch_end(2, {"val/wer": 0.3}, Control())
    assert [each.get("val/wer") for each in again.epochs] == [0.9, 0.4, 0.3]
    assert read_history(path) == again.epochs
    assert again.best("val/wer") == (2, 0.3)


def test_half_a_line_that_a_killed_run_left_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    filled(path)
    with path.open("a") as file:
        file.write('{"val/wer": 0.')
    assert len(read_history(path)) == 4
    again = History(direction, path)  # type: ignore[arg-type]
    again.on_train_start(9, 4)
    again.on_epoch_end(4, {"val/wer": 0.2}, Control())
    assert [each["val/wer"] for each in read_history(path)][-1] == 0.2
