"""Builds the object that the `_target_` of a component names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from speechtrain.config.components import MIXES
from speechtrain.config.experiment import Component, component
from speechtrain.errors import ConfigError, Problem, UserError, first_line


def component_of(group: str, node: DictConfig | Component) -> Component:
    """Return a node's target and arguments as plain values; those of a component are so already."""
    return component(group, node) if isinstance(node, DictConfig) else node


def build(group: str, node: DictConfig | Component, **known_now: Any) -> Any:
    """Call the target of a node with its arguments and with those that are only known now, which are passed on unchanged."""
    made = dict(component_of(group, node))
    if made["_target_"] in MIXES:
        made["corpora"] = {name: build(group, corpus) for name, corpus in made["corpora"].items()}
    return _call(made, known_now)


def construct(group: str, component: Component, **known_now: Any) -> Any:
    """Call the target of a component as `build` does.

    Raises:
        ConfigError: it cannot be called with these arguments.
    """
    try:
        return _call(component, known_now)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        message = f"{component['_target_']} cannot be made of the keys of {group} ({reason})"
        raise ConfigError([Problem(f"{group}._target_", message, f"change the keys of {group}")]) from error


def _call(component: Component, known_now: Mapping[str, Any]) -> Any:
    """Call the target of a component; its arguments are values, of which none is resolved or built, whatever keys they have."""
    arguments = {key: value for key, value in component.items() if key != "_target_"}
    return get_object(str(component["_target_"]))(**arguments, **known_now)
