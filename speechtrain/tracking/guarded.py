"""Trackers that a config names, of which those that a user has written may be unfinished: what fails is told by the tracker's name."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, cast

from omegaconf import DictConfig

from speechtrain.config.build import build
from speechtrain.config.experiment import Component
from speechtrain.errors import RunError, UserError, first_line
from speechtrain.tracking.base import Tracker

log = logging.getLogger(__name__)

_MUST_WORK = ("start", "opened")


class _Guarded:
    """Calls a tracker, and keeps from the training what it raises: at the start an error for the user, later a warning."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker = tracker
        self._warned: set[str] = set()

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # asked for by `copy` and `pickle`, which need to hear that it is not there
            raise AttributeError(attribute)
        try:
            value = getattr(self._tracker, attribute)
        except AttributeError:
            raise self._failed(attribute, AttributeError(f"it has no {attribute}")) from None
        return functools.partial(self._call, attribute, value) if callable(value) else value

    def _call(self, method: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except (UserError, RunError):
            raise
        except Exception as error:
            if method in _MUST_WORK:
                raise self._failed(method, error) from error
            if method not in self._warned:
                log.warning("the tracker %s fails at %s (%s: %s); training goes on", self._name, method, type(error).__name__, error)
            self._warned.add(method)
            return f"{self._name} failed" if method == "how_to_look" else None

    def _failed(self, method: str, error: Exception) -> UserError:
        where = f"{type(self._tracker).__module__}.{type(self._tracker).__qualname__}"
        return UserError(
            f"the tracker {self._name} ({where}) fails at {method}: {type(error).__name__}: {first_line(error)}\n"
            "    -> mend it, see CONTRIBUTING.md; or leave it out of tracking=[...]"
        )


def build_tracker(name: str, node: DictConfig | Component) -> Tracker:
    """Build a tracker of a config.

    Raises:
        UserError: its class cannot be made, as one that lacks a method.
    """
    try:
        tracker = build("tracking", node)
    except (UserError, RunError):
        raise
    except Exception as error:
        raise UserError(
            f"the tracker {name} ({node['_target_']}) cannot be made: {type(error).__name__}: {first_line(error)}\n"
            "    -> mend its class or its keys, see CONTRIBUTING.md; or leave it out of tracking=[...]"
        ) from error
    return cast(Tracker, _Guarded(name, tracker))
