"""A stored config is what a stranger may have written: it is checked as a whole before anything is made of it."""

from __future__ import annotations

import copy
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from speechtrain.addresses import keep
from speechtrain.config import stored
from speechtrain.config.build import build
from speechtrain.config.compose import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.stored import read_yaml, stored_values, stored_vocabulary
from speechtrain.errors import ConfigError, UserError

EVIL = {"_target_": "torch.utils.collect_env.run", "command": "touch canary"}
"""What Hydra would build wherever it finds it."""


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The config of a run, as a checkpoint has it."""
    options = ["data=mix", "+data@data.corpora.a=synthetic", "data.corpora.a.alphabet=ab", "decoder=greedy"]
    return ExperimentConfig.of(compose(options)).as_dict()


@pytest.fixture
def config(whole: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(whole)


def put(config: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    *parents, last = path.split(".")
    node = config
    for part in parents:
        node = node[part]
    node[last] = value
    return config


def test_a_run_that_was_stored_is_read_as_it_was(config: dict[str, Any], whole: dict[str, Any]) -> None:
    assert stored_values(config, "old.ckpt", trust=False) == whole
    assert ExperimentConfig.stored(config, "old.ckpt", trust=False).as_dict() == whole


def test_the_secrets_of_a_corpus_of_ones_own_are_found_again_where_the_file_is_trusted(config: dict[str, Any]) -> None:
    corpus = {"_target_": "mine.Corpus", "url": "https://me:hun7er@host/", "password": "hun7er"}
    masked = keep({**config, "data": {**config["data"], **corpus}})
    assert "hun7er" not in str(masked)
    assert stored_values(masked, "own.ckpt", trust=True)["data"] == {**config["data"], **corpus}
    assert stored_values({**masked, "data": config["data"], "init_from": "https://me:***@host/"}, "its.ckpt", trust=False)["init_from"] == (
        "https://me:***@host/"
    )


@pytest.mark.parametrize("trust", [False, True])
def test_what_is_put_into_a_value_is_never_built(trust: bool, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(os, "system", ran.append)
    system = {"_target_": "os.system", "command": "x"}
    for path in ("tokenizer.lowercase", "features.n_mels", "task.metric", "augment.noise_snr_db", "model.stem_channels"):
        for value in (system, [system], {"deep": [{"deeper": system}]}):
            with pytest.raises(UserError):
                stored_values(put(copy.deepcopy(config), path, value), "evil.ckpt", trust=trust)
    class_of_its_own = {"_target_": "collections.OrderedDict", "value": system, "_args_": [system], "_partial_": True}
    built = build("model", class_of_its_own)
    assert built == {"value": system, "_args_": [system], "_partial_": True}
    assert ran == []


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("model", "os.system"),
        ("model", "speechtrain.files.os.system"),
        ("model", "speechtrain.tracking.provenance._git"),
        ("model", "speechtrain.data.features.features.LogMel"),  # of another group
        ("features", "speechtrain.config.build.build"),
        ("data", "speechtrain.backends.torch.models.Tdnn"),
        ("data.corpora.a", "os.system"),
        ("data.corpora.a", "speechtrain.files.os.system"),
        ("task", ["os.system"]),
        ("optimizer", {"a": 1}),
    ],
)
def test_only_the_classes_that_an_option_of_the_group_names_are_known(path: str, target: object, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{path}\._target_: in evil\.ckpt is .*, which is not of this package"):
        stored_values(put(config, f"{path}._target_", target), "evil.ckpt", trust=False)


@pytest.mark.parametrize(
    "path", ["tokenizer.lowercase", "data.weights", "data.corpora.a.alphabet", "trainer.devices", "objective.metric", "seed", "extra"]
)
def test_a_class_is_named_at_the_head_of_a_component_only(path: str, config: dict[str, Any]) -> None:
    allowed = {"_target_": "speechtrain.data.corpora.synthetic.Synthetic"}
    for value in (allowed, [allowed], [{"a": [allowed]}]):
        with pytest.raises(ConfigError, match=rf"{path}[.\w]*\._target_: in evil\.ckpt is speechtrain\.data\.corpora"):
            stored_values(put(config, path, value), "evil.ckpt", trust=False)


def test_a_class_of_ones_own_is_known_with_trust_and_takes_what_it_takes(config: dict[str, Any]) -> None:
    config["model"] = {"_target_": "my_parts.Narrow", "width": 8, "nested": {"depth": [2]}}
    config["tracking"] = {"mine": {"_target_": "my_pkg.Tracker"}}  # of a stored config none is built
    assert stored_values(config, "own.ckpt", trust=True) == config
    with pytest.raises(ConfigError, match=r"model\._target_: in own\.ckpt is my_parts\.Narrow") as caught:
        stored_values(config, "own.ckpt", trust=False)
    assert [problem.path for problem in caught.value.problems] == ["model._target_"]


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("tokenizer.lowercase", "${oc.env:HOME}", r"tokenizer\.lowercase is '\$\{oc\.env:HOME\}', and nothing is resolved"),
        ("data.normalize", ["nfc", "a${seed}"], r"data\.normalize\.1 is 'a\$\{seed\}', and nothing is resolved"),
        ("decoder.${seed}", 1, r"and nothing is resolved"),
        ("model.channels", "???", r"model\.channels has no value"),
        ("model.channels", 2**64, r"model\.channels is a number of 65 bits"),
        ("model.channels", -(2**20_000), r"model\.channels is a number of \d+ bits"),
        ("tokenizer.lowercase", b"x", r"tokenizer\.lowercase is a value of type bytes"),
        ("tokenizer.lowercase", Path(), r"tokenizer\.lowercase is a value of type \w+Path"),
        ("output_dir", "a\0b", r"output_dir is 'a\\x00b', which is no text"),
        ("output_dir", "a\ud800b", r"output_dir is 'a\\ud800b', which is no text"),
        ("output_dir", "x" * 10_000_001, r"more than 10,000,000 letters"),
        ("data.weights", {3.5: 1}, r"data\.weights has 3\.5 for a key"),
        ("trainer.devices", [0] * 100_001, r"more than 100,000 values"),
    ],
    ids=itertools.count(),
)
def test_values_that_no_run_writes_are_refused(path: str, value: object, told: str, config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"evil\.ckpt: its config cannot be read: .*{told}"):
        stored_values(put(config, path, value), "evil.ckpt", trust=True)


def test_a_value_of_any_size_from_a_few_bytes_is_refused(config: dict[str, Any]) -> None:
    value: list[Any] = ["x"] * 10
    for _ in range(20):
        value = [value] * 10
    with pytest.raises(UserError, match="more than 100,000 values"):
        stored_values(put(config, "trainer.devices", value), "evil.ckpt", trust=True)
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(UserError, match="nested more than 32 levels deep"):
        stored_values(put(config, "trainer.devices", circle), "evil.ckpt", trust=True)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("backend.threads", 1_000_000, r"backend\.threads: must be at least 1 and at most \d+, received 1000000"),
        ("model.chanels", 3, r"model\.chanels: there is no such key in this version\n    -> did you mean 'channels'"),
        ("features.colour", 3, r"features\.colour: there is no such key"),
        ("task.colour", 3, r"task\.colour: there is no such key"),
        ("trainer.checkpoint.size", 3, r"trainer\.checkpoint\.size: there is no such key"),
        ("data.corpora.a.colour", 3, r"data\.corpora\.a\.colour: there is no such key"),
        ("colour", 3, r"colour: there is no such key"),
        ("model.channels", "many", r"model\.channels: must be a whole number, received 'many'"),
        ("model.channels", 0, r"model\.channels: must be at least 1"),
        ("model.kernel_size", 4, r"model\.kernel_size: must be odd"),
        ("model.dilations", 3, r"model\.dilations: must be a list"),
        ("features.f_max", 1e9, r"features\.f_max: is 1e\+09 Hz, above half of sample_rate"),
        ("features.normalize", "all", r"features\.normalize: must be one of"),
        ("trainer", None, r"trainer: must be a group of keys, received None"),
        ("model", [1], r"model: must be a group of keys, received a value of type list"),
        ("model", {}, r"model\._target_: is missing"),
        ("data.corpora.a", "x", r"data\.corpora\.a\._target_: is missing"),
        ("report", None, r"report: "),
        ("tracking", [1], r"tracking: must be trackers by name"),
        ("tracking", {"mlflow": 3}, r"tracking\.mlflow: must be a tracker"),
        ("data.on_shared", None, r"data\.on_shared: "),
        ("seed", -1, r"seed: must be at least 0"),
    ],
)
def test_unknown_keys_wrong_types_and_ranges_are_named(path: str, value: object, told: str, config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"old\.ckpt: its config cannot be read\n  {told}"):
        stored_values(put(config, path, value), "old.ckpt", trust=False)


def test_every_group_must_be_there_and_keys_that_came_later_need_not(config: dict[str, Any]) -> None:
    del config["features"]["preemphasis"], config["trainer"]["find_lr"], config["samples"], config["data"]["on_shared"]["audio"]
    assert stored_values(config, "old.ckpt", trust=False) == config
    assert ExperimentConfig.stored(config, "old.ckpt", trust=False).samples == 5
    del config["model"]
    with pytest.raises(UserError, match="model: is missing"):
        stored_values(config, "old.ckpt", trust=False)
    for values in (None, 3, [config], "text"):
        with pytest.raises(UserError, match="and no mapping"):
            stored_values(values, "old.ckpt", trust=False)


def test_folders_of_the_machine_that_trained_need_not_be_on_this_one(config: dict[str, Any]) -> None:
    options = ["data=folder", "data.root=.", "data.train=.", "data.val=null", "data.test=null", "data.labels=file"]
    config["data"] = {**ExperimentConfig.of(compose(options)).as_dict()["data"], "root": "/elsewhere"}
    config["augment"]["noise_folder"] = "/elsewhere"
    assert stored_values(config, "old.ckpt", trust=False) == config


def test_an_option_without_a_schema_is_known_with_the_arguments_of_its_class(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: speechtrain.backends.${backend.name}.models.Mlp\n")
    (tmp_path / "model" / "also.yaml").write_text("defaults:\n  - mine\n  - _self_\n\nstack: 2\n")
    monkeypatch.setattr(stored, "CONF_DIR", tmp_path)
    for cached in (stored.known_targets, stored._option):
        cached.cache_clear()
    try:
        known = stored.known_targets("model")
        assert known == {f"speechtrain.backends.{name}.models.Mlp": None for name in ("torch", "keras")}
        node = {"_target_": "speechtrain.backends.torch.models.Mlp", "hidden_sizes": [8], "stack": "x", "colour": 1}
        problems = {problem.path for problem in stored._component("model", node, "model")}
        assert problems >= {"model.colour", "model.stack"}
    finally:
        for cached in (stored.known_targets, stored._option):
            cached.cache_clear()


def test_yaml_that_no_run_writes_is_refused(whole: dict[str, Any]) -> None:
    assert read_yaml(yaml.safe_dump(whole), "config.yaml") == whole
    assert read_yaml("a: 2026-11-30", "config.yaml") == {"a": "2026-11-30"}
    bomb = "a: &a [x,x]\n" + "".join(f"k{n}: &k{n} [*a,*a]\n" for n in range(3))
    for text in (bomb, "a: [", "[" * 5000, "!!python/object/apply:os.system [touch canary]", "? {a: b}\n: c", "a: 0x" + "f" * 9 + "g: ["):
        with pytest.raises(UserError, match=r"config\.yaml of run 1 cannot be read \("):
            read_yaml(text, "config.yaml of run 1")
    assert not Path("canary").exists()


@pytest.mark.parametrize("values", [None, "abc", [1], ["a", None], {"a": 1}, ["a\ud800"], ["", "a", "b", "a"]])
def test_a_vocabulary_is_a_list_of_texts(values: object) -> None:
    assert stored_vocabulary(["", "a", "${b}", "???"], "old.ckpt") == ["", "a", "${b}", "???"]
    with pytest.raises(UserError, match=r"evil\.ckpt: its vocabulary cannot be read"):
        stored_vocabulary(values, "evil.ckpt")
