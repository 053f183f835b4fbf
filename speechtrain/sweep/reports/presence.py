"""A sweeper's signs of life while it works: its record in the storage, and the page `status.html` in its folder, renewed by a thread."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from speechtrain.config.schemas.sweeps import SweeperOptions
from speechtrain.errors import RunError
from speechtrain.files import write_text
from speechtrain.processes.identity import Process
from speechtrain.sweep.reports.status import StatusReader
from speechtrain.sweep.reports.status_page import RENEWED_SECONDS, page_of
from speechtrain.sweep.study.control import SweeperRecord
from speechtrain.sweep.study.study import Study

log = logging.getLogger(__name__)

PAGE = "status.html"
_SHARE = 50
"""The page is renewed so seldom that making it takes less than one in so many seconds."""


class Presence:
    """Tells that a sweeper lives, how far its study has come, and at the end how it ended.

    Args:
        study: study of the sweep.
        record: what the sweeper tells of itself.
        folder: folder of the sweep.

    Attributes:
        ended: how the sweep ended, in words.
    """

    def __init__(self, study: Study, record: SweeperRecord, folder: Path) -> None:
        self.ended = "it failed"
        self._study = study
        self._record = record
        self._folder = folder
        self._reader = StatusReader(study.storage, study.id, study.name, study.url)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def begin(self) -> None:
        """Store the record, and begin to renew it and the page."""
        self._record.store(self._study.storage, self._study.id)
        self._thread.start()

    def end(self) -> None:
        """Store how the sweep ended, and write the page a last time."""
        self._done.set()
        self._thread.join()
        self._beat(ended=self.ended)
        self._write_page()

    def _renew(self) -> None:
        beat = time.monotonic() + self._record.heartbeat
        wait = 0.0
        while not self._done.wait(wait):
            if time.monotonic() >= beat:
                beat = time.monotonic() + self._record.heartbeat
                self._beat()
            began = time.monotonic()
            self._write_page()
            wait = max(float(RENEWED_SECONDS), _SHARE * (time.monotonic() - began))

    def _beat(self, ended: str | None = None) -> None:
        with contextlib.suppress(Exception):  # the storage may be away for a while; the sweep goes on
            replace(self._record, beat=time.time(), ended=ended).store(self._study.storage, self._study.id)

    def _write_page(self) -> None:
        try:
            write_text(self._folder / PAGE, page_of(self._reader.read()))
        except RunError as error:
            log.debug("%s", error)
        except Exception:  # the storage may be away for a while; the sweep goes on
            log.debug("the status could not be read", exc_info=True)


@contextlib.contextmanager
def present(study: Study, workers: int, folder: Path, *, options: SweeperOptions) -> Iterator[Presence]:
    """Tell of a sweeper while the block runs, which sets `ended` before it is left.

    Args:
        study: study of the sweep.
        workers: jobs that may run at a time.
        folder: folder of the sweep.
        options: `hydra.sweeper`.
    """
    now = time.time()
    record = SweeperRecord(Process.current(), now, now, options.heartbeat, workers, study.n_trials, options.retries)
    presence = Presence(study, record, folder)
    presence.begin()
    try:
        yield presence
    except KeyboardInterrupt:
        presence.ended = "it was interrupted"
        raise
    finally:
        presence.end()
