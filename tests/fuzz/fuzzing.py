"""Inputs from fixed seeds, and the two answers that one may have: the right one, or an error that the user can mend.

`SPEECHTRAIN_FUZZ=N` tries N times as many inputs; `SPEECHTRAIN_FUZZ_SEED=S` tries others.
"""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from speechtrain.errors import RunError, UserError

T = TypeVar("T")

MULTIPLIER = int(os.environ.get("SPEECHTRAIN_FUZZ", "1"))
FIRST_SEED = os.environ.get("SPEECHTRAIN_FUZZ_SEED", "0")


def generators(part: str, count: int) -> Iterator[tuple[int, random.Random]]:
    """Yield the number of each input of a part and the generator that it is to be drawn from."""
    for number in range(count * MULTIPLIER):
        yield number, random.Random(f"{part} {FIRST_SEED} {number}")


def answer(action: Callable[[], T], received: object) -> T | str:
    """Return what an action returns, or the message of the error that it ends with.

    Raises:
        AssertionError: it ends with an error that no user should see, or with a message that says nothing.
    """
    try:
        return action()
    except (UserError, RunError) as error:
        message = str(error)
        assert message.strip(), f"an error without a message, with {received!r:.2000}"
        assert len(message) < 20_000, f"a message of {len(message)} characters, with {received!r:.2000}"
        message.encode()  # it can be printed
        return message
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error!s:.500}, with {received!r:.2000}") from error


def refused(action: Callable[[], object], received: object) -> str:
    """Return the message with which an input is refused.

    Raises:
        AssertionError: it is accepted; or see `answer`.
    """
    outcome: object = None

    def noted() -> None:
        nonlocal outcome
        outcome = action()

    message = answer(noted, received)
    assert message is not None, f"accepted, and gave {outcome!r:.500}: {received!r:.2000}"
    return message


def peak_megabytes(action: Callable[[], T]) -> tuple[T, float]:
    """Return what an action returns, and how much memory Python and NumPy held at most meanwhile, in MB."""
    tracemalloc.start()
    try:
        return action(), tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def files_below(folder: Path) -> set[str]:
    """Return the paths of all files and folders below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
