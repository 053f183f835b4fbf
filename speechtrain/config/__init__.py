"""From group files and command-line overrides to a config that is known to be valid, without importing any framework."""

from speechtrain.config.compose import compose
from speechtrain.config.composition import CONF_DIR

__all__ = ["CONF_DIR", "compose"]
