"""MLflow's settings in the processes that ask its servers and databases for us; imported before MLflow, which reads some when it is."""

import contextlib
import os
from collections.abc import Iterator

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_SLOWEST = 1e6
"""Bytes a second of the slowest connection between a server and its store that files are waited for."""

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # what could not be sent is sent again by ourselves
os.environ.setdefault(_TIMEOUT, "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@contextlib.contextmanager
def transfer_timeout(size: int) -> Iterator[None]:
    """Wait longer for answers while the block runs: a server answers when it has passed a file of so many bytes on to its store."""
    before = os.environ[_TIMEOUT]
    os.environ[_TIMEOUT] = str(int(before) + int(size / _SLOWEST))
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = before
