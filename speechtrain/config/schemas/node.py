"""What schemas are made of: fields with bounds, nodes with rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING, DictConfig, OmegaConf

Rule = tuple[str, str, str]
"""(key relative to the node, what is wrong, what to do)."""


def number(*, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None) -> Any:
    """A field whose value, or each of whose values if it is a list, lies within the bounds; None is left alone."""
    return field(default=MISSING, metadata={"ge": ge, "gt": gt, "le": le, "lt": lt})


def choice(*allowed: str) -> Any:
    """A field that takes one of the given words."""
    return field(default=MISSING, metadata={"choices": allowed})


@dataclass
class Node:
    """Base of every schema."""

    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """By other groups: schemas of which one must be chosen there; a group without a schema is left alone."""

    @staticmethod
    def rules(node: Any) -> Iterator[Rule]:
        """Yield what is wrong between the keys of this node; types and ranges are known to be right by then."""
        yield from ()


SIZES = ("tiny", "small", "medium", "large")


def by_size(*values: Any, _parent_: DictConfig) -> Any:
    """`${by_size:a,b,c,d}` in a model's file: the value for its `size`."""
    size = _parent_.get("size")
    if size not in SIZES:
        return values[0]  # told by the schema
    return values[SIZES.index(size)]


OmegaConf.register_new_resolver("by_size", by_size, replace=True)


@dataclass
class Target(Node):
    """A node that names the class or function it is the arguments of."""

    _target_: str = MISSING
