"""Reading ahead: parts of files are fetched by several threads before they are asked for, so that no batch waits for each request."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary, finalize

from speechtrain.data.storage import Part, Storage, StorageError

_MOST_BYTES = 64 << 20
"""Bytes that are fetched and not yet asked for, of a process; a part that is larger is fetched alone."""


_Queue = SimpleQueue[tuple[Future[bytes], Part] | None]


class _Readers:
    """Reads parts in daemon threads, which a process that ends does not wait for (it does for those of `ThreadPoolExecutor`).

    Args:
        storage: where the files lie.
        threads: parts that are read at the same time.
    """

    def __init__(self, storage: Storage, threads: int) -> None:
        self._storage = storage
        self._threads = threads
        self._started = 0
        self._queue: _Queue = SimpleQueue()
        finalize(self, _end, self._queue, threads).atexit = False

    def submit(self, part: Part) -> Future[bytes]:
        """Have a part read after those that were submitted before."""
        future: Future[bytes] = Future()
        self._queue.put((future, part))
        if self._started < self._threads:
            self._started += 1
            threading.Thread(target=_read_all, args=(self._queue, self._storage), name=f"fetching_{self._started}", daemon=True).start()
        return future


def _end(queue: _Queue, threads: int) -> None:
    for _ in range(threads):
        queue.put(None)


def _read_all(queue: _Queue, storage: Storage) -> None:
    while (item := queue.get()) is not None:
        _read(*item, storage)
        del item  # its content is the taker's alone


def _read(future: Future[bytes], part: Part, storage: Storage) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(storage.read(part))
    except BaseException as error:  # noqa: BLE001 # raised where the part is taken
        future.set_exception(error)


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

    def prefetch(self, parts: Iterable[Part], owner: object) -> None:
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
                    self._pending[part] = self._readers.submit(part)
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
        self._readers = _Readers(self._storage, self._threads)
        self._pending: dict[Part, Future[bytes]] = {}
        self._bytes = 0
        self._waiting: WeakKeyDictionary[object, deque[Part]] = WeakKeyDictionary()
        self._wanted: WeakKeyDictionary[object, set[Part]] = WeakKeyDictionary()
