"""What is read of a checkpoint without PyTorch."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechtrain.backends.checkpoint_files import read_extra
from speechtrain.errors import UserError

EXTRA = {"config": {"model": {"channels": 48, "dilations": [1, 2]}, "init_from": None, "lr": 1e-3}, "vocabulary": ["", "a", "ü"]}


def test_config_and_vocabulary_are_read_as_pytorch_reads_them(trained: Path) -> None:
    (path,) = (trained / "checkpoints").glob("best-*.ckpt")
    assert read_extra(path) == torch.load(path, weights_only=True)["extra"]
    assert read_extra(path)["vocabulary"][1] == "a"


def test_whatever_else_lies_in_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    others: dict[str, Any] = {
        "weights": OrderedDict(a=torch.ones(2, 3), b=torch.ones(2, dtype=torch.bfloat16), c=torch.nn.Parameter(torch.ones(1))),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "betas": (0.9, 0.98)},
        "random": {"numpy": np.random.default_rng(0).bit_generator.state, "state": torch.get_rng_state(), "seeds": np.arange(3)},
        "others": [defaultdict(int, a=1), Counter("aab"), {1, 2}, torch.Size([1]), torch.device("cpu"), np.float64(1), Path("a")],
    }
    torch.save({**others, "extra": EXTRA}, tmp_path / "a.ckpt")
    assert read_extra(tmp_path / "a.ckpt") == EXTRA


class Touches:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched"),))


def test_nothing_that_a_checkpoint_names_is_run(tmp_path: Path) -> None:
    torch.save({"extra": EXTRA, "hook": Touches()}, tmp_path / "a.ckpt")
    assert read_extra(tmp_path / "a.ckpt") == EXTRA
    assert not (tmp_path / "touched").exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert (tmp_path / "touched").exists()


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.ckpt"
    torch.save({"extra": EXTRA, "weights": torch.ones(1000)}, whole)
    content = whole.read_bytes()
    files = {
        "empty": b"",
        "text": b"weights",
        "half": content[: len(content) // 2],
        "flipped": content.replace(b"vocabulary", b"vocabularx"),
    }
    for name, damaged in files.items():
        (tmp_path / f"{name}.ckpt").write_bytes(damaged)
    torch.save({"weights": torch.ones(3)}, tmp_path / "other.ckpt")
    for name in (*files, "other", "absent"):
        with pytest.raises(UserError, match=rf"{name}\.ckpt: is not a model of speechtrain \(.*\)\n    -> give a checkpoint"):
            read_extra(tmp_path / f"{name}.ckpt")
