"""From a config node to the object that its `_target_` names."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from speechtrain.config.checks import arguments


def plain(group: str, node: DictConfig) -> dict[str, Any]:
    """A node's target and arguments as plain values, to be called later."""
    return {"_target_": str(node["_target_"]), **arguments(group, node)}


def build(group: str, node: DictConfig, **given: Any) -> Any:
    """Call the node's target with its keys and with what is only known now; `given` is passed on as it is."""
    return instantiate(plain(group, node), _partial_=True, _convert_="all")(**given)
