"""Parts of schemas: fields with bounds or choices, and nodes with rules between their keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING, DictConfig, OmegaConf

Rule = tuple[str, str, str]
"""A problem of a node: its key inside the node (empty: the node itself), what is wrong, and what to do."""


HIGHEST_RATE = 768_000
"""Hz; `data.audio` reads no recordings at higher ones."""
MOST = 1e9
"""The greatest absolute value of a number that does not say otherwise; more is a slip of the finger, and would fill any memory."""


def number(
    *, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None, most: float = MOST
) -> Any:
    """Declare a field whose value, or each of whose values if it is a list, must lie within the bounds; None is not checked.

    Args:
        ge: at least this; like the next three a bound that follows from what the number means, which a message always names.
        gt: more than this.
        le: at most this.
        lt: less than this.
        most: the greatest absolute value that makes sense, which a message names only where a value is beyond it. Infinity is allowed only
            where it is `math.inf`, and NaN nowhere.
    """
    return field(default=MISSING, metadata={"ge": ge, "gt": gt, "le": le, "lt": lt, "most": most})


def choice(*allowed: str) -> Any:
    """Declare a field that takes one of the allowed words."""
    return field(default=MISSING, metadata={"choices": allowed})


@dataclass
class Node:
    """The base of every schema: one group option, or one node inside it."""

    goes_with: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The schemas of which one must be chosen in other groups, by group; a group without a schema is not checked."""

    def rules(self) -> Iterator[Rule]:
        """Yield what is wrong between the keys of this node; types and ranges have been checked by then."""
        yield from ()


SIZES = ("tiny", "small", "medium", "large")


def by_size(*values: Any, _parent_: DictConfig) -> Any:
    """Resolve `${by_size:a,b,c,d}` in the file of a model: the value for its `size`."""
    size = _parent_.get("size")
    if size not in SIZES:
        return values[0]  # the schema refuses the size
    return values[SIZES.index(size)]


OmegaConf.register_new_resolver("by_size", by_size, replace=True)


@dataclass
class Target(Node):
    """A node with the arguments of the class or function that its `_target_` names."""

    _target_: str = MISSING
