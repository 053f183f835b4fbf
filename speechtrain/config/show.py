"""The resolved config as a tree for people."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.tree import Tree

from speechtrain.console import console


def print_config(cfg: DictConfig) -> None:
    """Print every group as a branch; short lists stay on one line."""
    tree = Tree("[bold]config[/]", guide_style="dim")
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    _grow(tree, values)
    console.print(tree)


def _grow(tree: Tree, values: dict[Any, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _grow(tree.add(f"[bold cyan]{key}[/]"), value)
        else:
            tree.add(f"[cyan]{key}[/]: {escape('null' if value is None else str(value))}")
