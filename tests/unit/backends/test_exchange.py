"""What the ranks of a training on several machines hand to each other, and what they do not read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from speechtrain.backends.callbacks import Control
from speechtrain.backends.torch.exchange import packed, unpacked
from speechtrain.tasks.base import Sample
from speechtrain.tasks.regression import SignalTotals


def test_what_scorers_and_callbacks_hand_over_is_read_as_it_was() -> None:
    sample = Sample("a", "one", "two", 0.5, (("two", 0.5),), {"mse": 0.25}, {"wave": np.ones(3, dtype=np.float32)})
    again = unpacked(packed((1.5, np.arange(4).reshape(2, 2), [sample], SignalTotals(3, 0.1), Control("enough", pruned=True), None)))
    loss, confusion, (read,), totals, control, nothing = again
    assert (loss, nothing, totals, control) == (1.5, None, SignalTotals(3, 0.1), Control("enough", pruned=True))
    assert confusion.tolist() == [[0, 1], [2, 3]]
    assert (read.id, read.words, read.measures) == ("a", sample.words, sample.measures)
    assert read.arrays["wave"].tolist() == [1, 1, 1]


class Harmful:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_what_would_run_code_is_not_read(tmp_path: Path) -> None:
    content = packed(Harmful(tmp_path / "made"))
    with pytest.raises(pickle.UnpicklingError):
        unpacked(content)
    assert not (tmp_path / "made").exists()
