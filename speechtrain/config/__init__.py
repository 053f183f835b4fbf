"""From group files and command-line overrides to a config that is known to be valid, without importing any framework."""

from speechtrain.config.compose import CONF_DIR, compose

__all__ = ["CONF_DIR", "compose"]
