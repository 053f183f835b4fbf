"""Reading ahead: parts of files are fetched by several threads before they are asked for, so that no batch waits for each request."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

from speechtrain.data.storage import Part, Storage, StorageError

_MOST_BYTES = 64 << 20
"""Bytes that are fetched and not yet asked for, of a process; a part that is larger is fetched alone."""


class ReadAhead:
    """Fetches parts of files ahead, in bounded memory.

    Args:
        storage: where the files lie.
        threads: parts that are fetched at the same time, in each process.
    """

    def __init__(self, storage: Storage, threads: int) -> None:
        self._storage = storage
        self._threads = threads
        self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadAhead, (self._storage, self._threads)

    def expect(self, parts: Iterable[Part], owner: object) -> None:
        """Begin to fetch the parts that `owner` asks for next, in this order; those of its last call that are not among them are let go."""
        with self._own_lock():
            self._waiting[owner] = deque(parts)
            self._wanted[owner] = set(self._waiting[owner])
            for part in [part for part in self._pending if not any(part in wanted for wanted in self._wanted.values())]:
                self._forget(part).cancel()
            self._submit()

    def take(self, part: Part) -> bytes:
        """Return a part, which is fetched now if it was not expected.

        Raises:
            StorageError: it cannot be read.
        """
        with self._own_lock():
            future = self._pending.get(part)
        try:
            return self._storage.read(part) if future is None or future.cancel() else future.result()
        except StorageError:
            self._let_go()
            raise
        finally:
            with self._own_lock():
                if part in self._pending:
                    self._forget(part)
                for wanted in self._wanted.values():
                    wanted.discard(part)
                self._submit()

    def _let_go(self) -> None:
        """Fetch nothing more ahead: each of the parts may take as long to fail."""
        with self._own_lock():
            self._waiting.clear()
            self._wanted.clear()
            for part in list(self._pending):
                self._forget(part).cancel()

    def _submit(self) -> None:
        """Have the next parts fetched while there is room."""
        for owner, waiting in self._waiting.items():
            while waiting:
                part = waiting[0]
                if part in self._wanted[owner] and part not in self._pending:
                    if self._pending and self._bytes + part.size > _MOST_BYTES:
                        return
                    self._pending[part] = self._pool.submit(self._storage.read, part)
                    self._bytes += part.size
                waiting.popleft()

    def _forget(self, part: Part) -> Future[bytes]:
        self._bytes -= part.size
        return self._pending.pop(part)

    def _own_lock(self) -> threading.Lock:
        """Return the lock of this process, whose threads are not those of the process that it was forked from."""
        if self._process != os.getpid():
            self._begin()
        return self._lock

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(self._threads, "fetching")
        self._pending: dict[Part, Future[bytes]] = {}
        self._bytes = 0
        self._waiting: WeakKeyDictionary[object, deque[Part]] = WeakKeyDictionary()
        self._wanted: WeakKeyDictionary[object, set[Part]] = WeakKeyDictionary()
