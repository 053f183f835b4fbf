"""Builds the object that the `_target_` of a component names."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from speechtrain.config.experiment import Component, component


def component_of(group: str, node: DictConfig | Component) -> Component:
    """Return a node's target and arguments as plain values; those of a component are so already."""
    return component(group, node) if isinstance(node, DictConfig) else node


def build(group: str, node: DictConfig | Component, **known_now: Any) -> Any:
    """Call the target of a node with its arguments and with those that are only known now, which are passed on unchanged."""
    return instantiate(dict(component_of(group, node)), _partial_=True, _convert_="all")(**known_now)
