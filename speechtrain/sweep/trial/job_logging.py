"""Sets up the logging of one job after another in a process; where only the name of the log file differs, only that file is changed."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

_KNOWN_KEYS = {"version", "formatters", "handlers", "root", "disable_existing_loggers"}


class JobLogging:
    """Does what `hydra.core.utils.configure_log` does, which takes a quarter of the time of a job that does nothing."""

    def __init__(self) -> None:
        self._shape: tuple[str, ...] | None = None
        self._files: list[str] = []
        self._handlers: list[logging.Handler] = []
        self._alive = 0
        self._level = logging.NOTSET

    def configure(self, hydra: DictConfig, shape: tuple[str, ...]) -> None:
        """Set up logging as Hydra's part of a job's config says.

        Args:
            hydra: that part.
            shape: what jobs have in common that differ in values of the program's own part alone.

        Raises:
            ValueError: the config cannot be used.
        """
        if shape == self._shape and self._is_untouched():
            handlers = hydra.job_logging.handlers
            for name in self._files:
                _write_to(next(each for each in self._handlers if each.get_name() == name), str(handlers[name].filename))
            return
        configure_log(hydra.job_logging, hydra.verbose)
        root = logging.getLogger()
        files = _files_of(hydra)
        self._shape, self._files = (None, []) if files is None else (shape, files)
        self._handlers, self._level, self._alive = list(root.handlers), root.level, len(_living_handlers())

    def _is_untouched(self) -> bool:
        """Return whether the program has left logging as it was set up: otherwise setting it up anew closes what the program has opened."""
        root = logging.getLogger()
        streams = [each.stream for each in self._handlers if type(each) is logging.StreamHandler]
        same = root.handlers == self._handlers and root.level == self._level and len(_living_handlers()) == self._alive
        return same and all(stream is sys.stdout for stream in streams)


def _files_of(hydra: DictConfig) -> list[str] | None:
    """Return the names of the handlers that write to a file; None where jobs may differ in more than the names of these files."""
    config: Any = OmegaConf.to_container(hydra.job_logging) if hydra.job_logging is not None else None
    if not isinstance(config, dict) or not set(config) <= _KNOWN_KEYS or config.get("root") is None or hydra.verbose is not False:
        return None
    files, attached = [], config["root"].get("handlers") or []
    for name, handler in config.get("handlers", {}).items():
        opened = handler.get("class") == "logging.FileHandler" and not handler.get("delay") and handler.get("mode", "a") == "a"
        if opened and name in attached:
            files.append(name)
            del handler["filename"]
        elif handler.get("class") != "logging.StreamHandler" or handler.get("stream") != "ext://sys.stdout":
            return None
    return None if "${" in str(config) else files


def _write_to(handler: logging.Handler, name: str) -> None:
    """Let a handler append to another file."""
    assert isinstance(handler, logging.FileHandler)
    path = Path(name).absolute()
    before = handler.setStream(path.open("a", encoding=handler.encoding, errors=handler.errors))
    handler.baseFilename = str(path)
    if before is not None:
        before.close()


def _living_handlers() -> list[Any]:
    """Return references to all handlers that there are."""
    return list(logging._handlerList)  # type: ignore[attr-defined] # `logging.getHandlerNames` names only some of them
