"""From a config node to the object that its `_target_` names."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from speechtrain.config.checks import arguments


def build(group: str, node: DictConfig, **given: Any) -> Any:
    """Call the node's target with its keys and with what is only known now; `given` is passed on as it is."""
    return instantiate({"_target_": str(node["_target_"]), **arguments(group, node)}, _partial_=True, _convert_="all")(**given)
