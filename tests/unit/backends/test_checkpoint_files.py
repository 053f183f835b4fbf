"""What is read of a checkpoint without PyTorch."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import Counter, OrderedDict, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechtrain.backends.checkpoint_files import read_extra
from speechtrain.backends.torch.checkpoint import read_weights
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


def with_pickle(path: Path, content: bytes) -> Path:
    """A checkpoint with another structure, and one file of 8 bytes for its tensors."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(8))
        archive.writestr("archive/version", "3")
    return path


def storage(count: int, kind: str = "FloatStorage", key: str = "0") -> bytes:
    """The structure of a checkpoint whose extra is beside a storage of so many numbers."""

    class Storages(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return value.args if isinstance(value, partial) else None

    buffer = io.BytesIO()
    Storages(buffer, protocol=2).dump({"extra": EXTRA, "weights": partial(print, "storage", getattr(torch, kind), key, "cpu", count)})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("count", "kind", "key"), [(3, "FloatStorage", "0"), (10**9, "ByteStorage", "0"), (-1, "FloatStorage", "0"), (1, "FloatStorage", "1")]
)
def test_a_tensor_has_its_numbers_in_its_file(count: int, kind: str, key: str, tmp_path: Path) -> None:
    assert read_extra(with_pickle(tmp_path / "a.ckpt", storage(2))) == EXTRA
    for read in (read_extra, read_weights):
        with pytest.raises(UserError, match=r"a\.ckpt.* is not a "):
            read(with_pickle(tmp_path / "a.ckpt", storage(count, kind, key)))


@pytest.mark.parametrize(
    "structure",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a value is to be remembered under the number 2^31: Python makes room for all before it
        b"\x80\x02\x96\xff\xff\xff\xff\xff\x00\x00\x00.",
        b"\x80\x02ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02" + b"(" * 10**5,
        b"",
    ],
)
def test_a_structure_that_asks_for_memory_is_refused(structure: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.ckpt: is not a model of speechtrain"):
        read_extra(with_pickle(tmp_path / "a.ckpt", structure))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.tensor([1.0, float("nan")]), "its weight 'a' holds NaN"),
        (torch.ones(1).expand(10**12), "its weight 'model.a' is no plain tensor"),
        (torch.eye(3).to_sparse(), "is no"),
        (3, "its weight 'model.a' is no tensor"),
    ],
)
def test_a_weight_that_is_no_tensor_of_numbers_is_named(value: object, told: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {"model.a": value}, "extra": EXTRA}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=rf"a\.ckpt is not a checkpoint that can be read \(.*{told}"):
        read_weights(tmp_path / "a.ckpt")
