"""A job in a process of its own, where this one cannot do it: Keras keeps the engine that it was first imported with."""

from __future__ import annotations

import contextlib
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import configure_log
from omegaconf import DictConfig

from speechtrain.errors import RunError, UserError
from speechtrain.processes import interrupts

_GRACE = 10.0
"""Seconds that a job has to end by itself when it is interrupted."""


def run_elsewhere(job: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """What a function of the config returns, or raises, when a fresh process calls it; environment and output are this one's.

    Raises:
        RunError: the process died.
        KeyboardInterrupt: this process was interrupted; the other one has ended by then.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "job", Path(folder) / "answer"
        given.write_bytes(cloudpickle.dumps({"path": sys.path, "state": Singleton.get_state(), "job": job, "cfg": cfg}))
        sys.stdout.flush()
        sys.stderr.flush()
        process = subprocess.Popen([sys.executable, "-m", "speechtrain.processes.fresh", str(given), str(answer)], stdin=subprocess.DEVNULL)
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
            process.kill()
            raise
        if not answer.is_file():
            raise RunError(f"the process of this job ended with {code} and said nothing")
        found = pickle.loads(answer.read_bytes())  # noqa: S301 # from our own process
    if isinstance(found["error"], BaseException):
        raise found["error"]
    return found["value"]


def main() -> None:
    """Call what the first argument's file holds; the answer goes to the second's."""
    given, answer = (Path(item) for item in sys.argv[1:])
    interrupts.listen(signal.SIGTERM)
    with given.open("rb") as file:
        content = pickle.load(file)  # noqa: S301 # from our own process
    sys.path[:] = content["path"]
    Singleton.set_state(content["state"])
    configure_log(HydraConfig.get().job_logging, HydraConfig.get().verbose)  # type: ignore[arg-type]
    found: dict[str, Any] = {"value": None, "error": None}
    try:
        found["value"] = content["job"](content["cfg"])
    except BaseException as error:  # noqa: BLE001 # whatever it is, it is raised again at the other side
        found["error"] = error
    answer.write_bytes(_packed(found))


def _packed(found: dict[str, Any]) -> bytes:
    """Bytes that can be unpickled again; an error that cannot is told by its text."""
    try:
        packed = bytes(cloudpickle.dumps(found))
        pickle.loads(packed)  # noqa: S301 # just packed
    except Exception:  # noqa: BLE001 # objects fail to pickle in many ways
        error = found["error"]
        kind = UserError if isinstance(error, UserError) else RunError
        text = str(error) if isinstance(error, (UserError, RunError)) else f"{type(error).__name__}: {error}"
        return pickle.dumps({"value": None, "error": kind(text) if error is not None else RunError("gave a result that cannot be sent")})
    return packed


if __name__ == "__main__":
    main()
