"""The reference of config keys: it is that of the config files, and its JSON schemas take every one of them and refuse mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from omegaconf import OmegaConf
from referencing import Registry, Resource

import speechtrain
from speechtrain.app.reference import SWEEPING, reference
from speechtrain.config.composition import CONF_DIR
from speechtrain.config.options import groups, options_of

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "reference"


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    return reference()


@pytest.fixture(scope="module")
def validators(written: dict[str, str]) -> dict[str, Draft7Validator]:
    schemas = {Path(name).stem: json.loads(text) for name, text in written.items() if name.endswith(".json")}
    registry: Registry[Any] = Registry().with_resources((f"{name}.json", Resource.from_contents(each)) for name, each in schemas.items())
    return {name: Draft7Validator(schema, registry=registry) for name, schema in schemas.items()}


def problems(validator: Draft7Validator, content: object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)]


def test_the_reference_is_that_of_the_config_files(written: dict[str, str]) -> None:
    lying = {path.relative_to(FOLDER).as_posix(): path.read_text() for path in FOLDER.rglob("*") if path.suffix in (".md", ".json")}
    assert {name for name in written if lying.get(name) != written[name]} == set(), "type make reference"
    assert set(lying) == set(written), "a file of docs/reference is no part of the reference"


def test_every_option_and_key_is_in_the_reference(written: dict[str, str]) -> None:
    for group in set(groups([CONF_DIR])) - {"experiment", "sweep"}:
        page = written["sweep.md" if group in SWEEPING else f"{group}.md"]
        for option in options_of(group, [CONF_DIR]):
            assert f"`{group}={option.name}`\n" in page
            assert all(f"| `{option.package}.{name}` |" in page for name in option.keys)


def test_the_python_api_is_in_the_reference(written: dict[str, str]) -> None:
    page = written["python.md"]
    for name in set(speechtrain.__all__) - {"__version__"}:
        assert f"## `speechtrain.{name}`\n" in page
    assert "- `trust`: whether its config may name classes of other packages, whose code is then run.\n" in page
    assert "forward(" in page


def test_a_link_of_the_reference_leads_to_a_heading(written: dict[str, str]) -> None:
    for name, page in written.items():
        headings = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}
        assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= headings
        assert all((FOLDER / link).exists() for link in re.findall(r"\]\(([^)#]+)\)", page)), name


def test_the_schemas_take_every_config_file(validators: dict[str, Draft7Validator]) -> None:
    files = [path for name in validators for path in sorted((CONF_DIR / name).glob("*.yaml"))]
    found = {
        path.relative_to(CONF_DIR).as_posix(): problems(
            validators[path.parent.name], OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        )
        for path in files
    }
    assert {name: each for name, each in found.items() if each} == {}
    assert len(files) > 100


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model", {"defaults": ["conformer"], "d_modle": 3}, "'d_modle' is not one of"),
        ("model", {"dropout": 1.5}, "$.dropout: 1.5 is not valid"),
        ("trainer", {"precision": "bf17"}, "$.precision: 'bf17' is not valid"),
        ("experiment", {"trainer": {"epochs": "many"}}, "$.trainer.epochs: 'many' is not valid"),
        ("experiment", {"sede": 1}, "'sede' was unexpected"),
        ("data", {"split": {"by": "room"}}, "$.split.by: 'room' is not valid"),
    ],
)
def test_the_schemas_refuse_a_mistake(validators: dict[str, Draft7Validator], name: str, content: object, told: str) -> None:
    assert any(told in each for each in problems(validators[name], content))


def test_the_schemas_take_a_class_of_the_users_own_with_its_keys(validators: dict[str, Draft7Validator]) -> None:
    assert problems(validators["model"], {"_target_": "mine.Model", "width": 64}) == []
    assert problems(validators["experiment"], {"defaults": [{"override /model": "conformer"}], "model": {"d_model": "${oc.env:D}"}}) == []
