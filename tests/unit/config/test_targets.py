"""Signatures are read without importing what they belong to."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from speechtrain.config.targets import UnknownTargetError, signature, task_directions, type_mismatch


def test_a_signature_is_read_from_source_through_imports_and_bases(tmp_path: Path) -> None:
    package = tmp_path / "some_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')\nfrom .inner import Child, make\n")
    (package / "inner.py").write_text(
        "from dataclasses import dataclass\n"
        "from some_pkg.base import Base\n"
        "class Child(Base):\n    pass\n"
        "def make(a, *, b=1, **more): ...\n"
        "@dataclass\nclass Data:\n    x: int\n    y: int = 2\n"
    )
    (package / "base.py").write_text("class Base:\n    def __init__(self, size, depth=3): ...\n")
    child = signature("some_pkg.Child")
    assert child is not None
    assert (child.names, child.required, child.open) == (["size", "depth"], ["size"], False)
    made = signature("some_pkg.make")
    assert made is not None
    assert (made.names, made.required, made.open) == (["a", "b"], ["a"], True)
    data = signature("some_pkg.inner.Data")
    assert data is not None
    assert (data.names, data.required) == (["x", "y"], ["x"])
    assert "some_pkg" not in sys.modules


@pytest.mark.parametrize(
    ("task", "metric", "way"),
    [
        ("ctc.Ctc", "wer", "minimize"),
        ("classification.Classification", "f1", "maximize"),
        ("regression.Regression", "snr_gain_db", "maximize"),
    ],
)
def test_which_way_a_metric_is_better_is_known_without_importing_the_task(task: str, metric: str, way: str) -> None:
    assert task_directions(f"speechtrain.tasks.{task}")[metric] == way


def test_a_module_is_found_that_another_one_imports_under_a_name_of_its_own() -> None:
    found = signature("os.path.join")
    assert found is not None
    assert found.required


def test_targets_of_libraries_are_read_too() -> None:
    found = signature("torch.optim.AdamW")
    assert found is not None
    assert {"params", "lr", "betas"} <= set(found.names)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere.Thing", "no module 'nowhere'"),
        ("speechtrain.errors.Nothing", "has no 'Nothing'"),
        ("speechtrain.errors", "is a module"),
        ("Thing", "not a dotted path"),
    ],
)
def test_an_unknown_target_is_named(target: str, said: str) -> None:
    with pytest.raises(UnknownTargetError, match=said):
        signature(target)


@pytest.mark.parametrize(
    ("annotation", "fitting", "wrong", "wanted"),
    [
        ("int", 3, "3", "a whole number"),
        ("int", 3.0, 3.5, "a whole number"),
        ("int", 3, True, "a whole number"),
        ("float", 3, "x", "a number"),
        ("bool", False, 0, "true or false"),
        ("int | None", None, "x", "a whole number or null"),
        ("list[int]", [1, 2], [1, "x"], "a list, each item a whole number"),
        ("list[int]", [], 1, "a list"),
    ],
)
def test_a_value_must_fit_the_annotation_of_its_parameter(annotation: str, fitting: object, wrong: object, wanted: str) -> None:
    parameter = ast.parse(annotation, mode="eval").body
    assert type_mismatch(fitting, parameter) is None
    assert type_mismatch(wrong, parameter) == wanted


@pytest.mark.parametrize("annotation", ["Path", "dict[str, int]", "my_pkg.Width", "Literal['a']", "Width | int"])
def test_an_annotation_that_is_not_a_simple_type_refuses_nothing(annotation: str) -> None:
    assert type_mismatch("x", ast.parse(annotation, mode="eval").body) is None
