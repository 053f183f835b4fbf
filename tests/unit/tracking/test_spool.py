"""A spool keeps events in order, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechtrain.tracking.mlflow.spool import Spool, spools_below, spools_in


def test_events_are_read_back_in_order_and_from_where_one_left_off(tmp_path: Path) -> None:
    spool = Spool.new(tmp_path)
    for number in range(4):
        spool.append({"call": "metrics", "step": number})
    events = list(spool.read(0))
    assert [event["step"] for event, _ in events] == [0, 1, 2, 3]
    assert [event["step"] for event, _ in spool.read(events[1][1])] == [2, 3]
    spool.commit({"offset": events[1][1]})
    assert Spool(spool.path).state() == {"offset": events[1][1]}


def test_half_a_line_waits_and_one_that_is_no_event_is_passed_over(tmp_path: Path) -> None:
    spool = Spool.new(tmp_path)
    spool.append({"call": "open"})
    with spool.path.open("ab") as file:
        file.write(b'no json\n["a list"]\n{"call": "close"')
    assert [event["call"] for event, _ in spool.read(0)] == ["open"]
    with spool.path.open("ab") as file:
        file.write(b"}\n")
    assert [event["call"] for event, _ in spool.read(0)] == ["open", "close"]


def test_what_cannot_be_written_is_held_in_order(tmp_path: Path) -> None:
    spool = Spool(Path("/dev/full"))
    for number in range(3):
        with pytest.raises(OSError, match="No space"):
            spool.append({"call": "metrics", "step": number})
    assert spool.held == 3
    spool.path = tmp_path / "spool.jsonl"
    spool.append({"call": "close"})
    assert [event.get("step") for event, _ in spool.read(0)] == [0, 1, 2, None]
    assert spool.held == 0


def test_a_finished_spool_leaves_nothing(tmp_path: Path) -> None:
    spool = Spool.new(tmp_path / "run")
    spool.append({"call": "open"})
    with spool.lock():
        assert [found.path for found in spools_in(tmp_path / "run")] == [spool.path]
        assert [found.path for found in spools_below([tmp_path])] == [spool.path]
    spool.commit({"offset": 1})
    spool.remove()
    assert list((tmp_path / "run").iterdir()) == []
