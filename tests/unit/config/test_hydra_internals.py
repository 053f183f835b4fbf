"""What is used of Hydra's and OmegaConf's inside is still as it was; a failure here means that a new version of them has changed it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import omegaconf._utils
import omegaconf.base
import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException, MissingConfigException
from omegaconf import IntegerNode, Node, OmegaConf
from omegaconf.errors import ConfigAttributeError, OmegaConfBaseException, ValidationError

from speechtrain.config import CONF_DIR, internals


def composed(*overrides: str) -> Exception | None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        try:
            hydra_compose("config", overrides=[*overrides])
        except (HydraException, OmegaConfBaseException) as error:
            return error
    return None


def test_hydra_sets_values_as_the_sweeper_asks_it_to(tmp_path: Path) -> None:
    GlobalHydra.instance().clear()
    overrides = OverridesParser.create().parse_overrides(["seed=7", "trainer.epochs=2"])
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        cfg = hydra_compose("config", return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        try:
            internals.apply_overrides(overrides, cfg)
            groups = internals.is_group(loader, "model"), internals.is_group(loader, "model.channels")
        except (AttributeError, TypeError) as error:
            pytest.fail(f"Hydra has changed: {ConfigLoaderImpl.__module__}: {error}")
    assert (cfg.seed, cfg.trainer.epochs) == (7, 2), "Hydra has changed: ConfigLoaderImpl._apply_overrides_to_config"
    assert internals.override_dirname(overrides, cfg) == "seed=7,trainer.epochs=2", "Hydra has changed: get_overrides_dirname"
    assert groups == (True, False), "Hydra has changed: ConfigLoaderImpl.repository.group_exists"


def test_configs_are_composed_with_the_one_store_of_schemas_and_change_nothing_in_it() -> None:
    composed()  # the first time Hydra looks for plugins, which bring schemas
    before = copy.deepcopy(ConfigStore.instance().repo)
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        repository = CachingConfigRepository(GlobalHydra.instance().config_loader().repository)  # type: ignore[attr-defined]
        stores = [source.store for source in repository.get_sources() if hasattr(source, "store")]
        assert stores == [ConfigStore.instance()], "Hydra has changed: what CachingConfigRepository copies"
        for overrides in (["model=lstm", "model.hidden_size=32"], ["model=conformer", "+trainer.nonsense=1"]):
            composed(*overrides)
    assert ConfigStore.instance().repo == before, "Hydra has changed: composing writes into ConfigStore"
    assert copy.deepcopy(ConfigStore.instance()) is not ConfigStore.instance(), "tests of a user's program restore the store from a copy"


def test_hydras_and_omegaconfs_errors_know_what_they_are_about() -> None:
    missing = composed("model=conformr")
    assert isinstance(missing, MissingConfigException), "Hydra has changed: MissingConfigException"
    assert missing.missing_cfg_file == "model/conformr", "Hydra has changed: MissingConfigException.missing_cfg_file"
    unknown = composed("model.chanels=3")
    assert unknown is not None
    assert isinstance(unknown.__cause__, ConfigAttributeError), "Hydra has changed: the cause of an unknown key"
    assert unknown.__cause__.full_key == "model.chanels", "OmegaConf has changed: full_key"
    wrong = composed("model.channels=many")
    assert wrong is not None
    assert isinstance(wrong.__cause__, ValidationError), "Hydra has changed: the cause of a wrong type"
    assert isinstance(wrong.__cause__.child_node, IntegerNode), "OmegaConf has changed: child_node"
    assert wrong.__cause__.value == "many", "OmegaConf has changed: value"


def test_hydras_return_value_is_read_without_raising_it(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("went wrong")
    returned = JobReturn(status=JobStatus.FAILED)
    returned.return_value = error
    try:
        assert internals.result_of(returned) is error, "Hydra has changed: JobReturn._return_value"
    except AttributeError:
        pytest.fail("Hydra has changed: JobReturn._return_value")
    assert capsys.readouterr().err == ""


def test_a_copied_config_is_what_omegaconfs_own_copy_is() -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        cfg = hydra_compose("config", overrides=["experiment=digit_strings"], return_hydra_config=True)
    cfg.hydra.run.dir  # noqa: B018 # what `now:` gives is kept by the root
    try:
        copied, theirs = internals.copy_config(cfg), copy.deepcopy(cfg)
        assert described(copied) == described(theirs), "OmegaConf has changed: what a deep copy of a node has"
        assert described(internals.copy_config(cfg, ["trainer", "seed"])) == {
            **described(theirs),
            "_content": {key: described(theirs)["_content"][key] for key in cfg if key in ("trainer", "seed")},
        }
    except AttributeError as error:
        pytest.fail(f"OmegaConf has changed: {error}")
    before = described(cfg)
    copied.trainer.epochs = 3
    OmegaConf.set_readonly(copied.optimizer, True)
    assert described(cfg) == before
    assert copied.hydra.run.dir == cfg.hydra.run.dir
    with pytest.raises(ConfigAttributeError):
        copied.nonsense = 1


def test_a_view_of_a_config_shares_its_nodes() -> None:
    cfg = OmegaConf.create({"a": {"b": "${c}"}, "c": 1})
    view = internals.view_of(cfg, ["a"])
    assert list(view) == ["a"]
    assert view.a.b == 1, "OmegaConf has changed: interpolations start at the root of a node's parents"
    cfg.a.b = 2
    assert view.a.b == 2


def test_a_text_with_interpolations_is_parsed_once_and_resolved_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setattr(omegaconf.base, "parse", omegaconf.base.parse)
        internals.remember_parsed_interpolations()
    except AttributeError as error:
        pytest.fail(f"OmegaConf has changed: {error}")
    for number in (1, 2):
        cfg = OmegaConf.create({"a": "${b}", "text": "no ${.b}-${oc.select:c,none}", "deep": "${oc.decode:'{b: ${b}}'}", "b": number})
        assert (cfg.a, cfg.text, cfg.deep) == (number, f"no {number}-none", {"b": number})
    assert omegaconf.base.parse.cache_info().hits >= 3, "OmegaConf has changed: where it parses interpolations"


def test_config_files_have_the_values_and_the_mistakes_that_omegaconf_finds_in_them(tmp_path: Path) -> None:
    try:
        loader = omegaconf._utils.get_yaml_loader()
    except AttributeError as error:
        pytest.fail(f"OmegaConf has changed: {error}")
    assert issubclass(loader, yaml.cyaml.CParser), "OmegaConf has changed: where it gets its loader, or this PyYAML has no libyaml"
    file = tmp_path / "a.yaml"
    file.write_text("lr: 1e-3\nday: 2020-01-01\nold: yes\n")
    assert OmegaConf.load(file) == {"lr": 0.001, "day": "2020-01-01", "old": True}
    for text, part in (("a: 1\na: 2\n", "found duplicate key a"), ("a: [1\nb: 2\n", "    a: [1\n       ^\nexpected ',' or ']'")):
        file.write_text(text)
        with pytest.raises(yaml.YAMLError) as caught:
            OmegaConf.load(file)
        assert part in str(caught.value)
        assert f'in "{file}", line 1' in str(caught.value)


def described(node: Any) -> Any:
    """All that makes up a node but its parent, which copies do not share, and what it can work out again."""
    attributes = {name: value for name, value in vars(node).items() if name not in ("_parent", "_flags_cache")}
    content = attributes.get("_content")
    if isinstance(content, dict):
        attributes["_content"] = {key: described(child) for key, child in content.items()}
    elif isinstance(content, list):
        attributes["_content"] = [described(child) for child in content]
    elif isinstance(content, Node):
        attributes["_content"] = described(content)
    return attributes | {"type": type(node)}
