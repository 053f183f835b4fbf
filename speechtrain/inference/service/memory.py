"""The memory that requests may hold, all together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from speechtrain.inference.service.refusals import Refusal


class Memory:
    """Counts the bytes that all requests together hold.

    Args:
        most: greatest number of bytes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    def take(self, count: int) -> None:
        """Count bytes that are held from now on.

        Raises:
            Refusal: there would be too many.
        """
        if self.held + count > self.most:
            raise Refusal(503, "other requests take all memory; try again")
        self.held += count

    def give_back(self, count: int) -> None:
        """Count bytes that are no longer held."""
        self.held -= count

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """Give a share of the memory to count with; nothing of it is held any longer when the block ends."""
        share = Share(self)
        try:
            yield share
        finally:
            share.hold(0)


class Share:
    """What one request or stream holds of a `Memory`."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.held = 0

    def hold(self, count: int) -> None:
        """Count so many bytes as held from now on, in place of those before.

        Raises:
            Refusal: there would be too many.
        """
        if count > self.held:
            self._memory.take(count - self.held)
        else:
            self._memory.give_back(self.held - count)
        self.held = count
