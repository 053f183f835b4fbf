"""`python -m speechtrain.serve`: a trained model over HTTP.

    python -m speechtrain.serve from=last port=8080
    curl --data-binary @a.wav localhost:8080/transcribe
    curl --data-binary @a.wav 'localhost:8080/transcribe?words=true'
    curl localhost:8080/health ; curl localhost:8080/metrics

Requests wait in a queue for the one model; those that wait together are computed together. What MLflow serves (`mlflow models
serve`) is the same model with MLflow's protocol; see docs/use.md. Keys are those of conf/serve.yaml, and `decoder` and `backend` as
in training.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import TYPE_CHECKING

from speechtrain.app.arguments import arguments_of
from speechtrain.app.command import run_command
from speechtrain.config.schemas.commands import ServeConfig
from speechtrain.console import console
from speechtrain.errors import UserError
from speechtrain.inference.find import load_for
from speechtrain.processes import interrupts

if TYPE_CHECKING:
    import uvicorn

    from speechtrain.inference.service import Service


def run(arguments: list[str]) -> int:
    """Serve a model with the keys of conf/serve.yaml, and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg, overrides = arguments_of(ServeConfig, arguments)
    with _opened_port(cfg) as listening:
        recognizer = load_for(cfg, overrides)
        from speechtrain.inference.service import Service

        service = Service(recognizer, cfg)
        recognizer.transcribe([0.0] * recognizer.sample_rate)  # the first pass is slow, so it is not left to the first request
        port = listening.getsockname()[1]
        console.print(f"serving     http://{cfg.host}:{port}   (POST /transcribe, GET /health, GET /metrics)", markup=False)
        with contextlib.suppress(KeyboardInterrupt):
            server_of(service).run(sockets=[listening])
        interrupts.forget()  # a signal is how serving ends
    return 0


def server_of(service: Service) -> uvicorn.Server:
    """Return the server of a service, with its limits."""
    import uvicorn

    from speechtrain.inference.connections import limited_protocol

    return uvicorn.Server(
        uvicorn.Config(
            service.app(),
            http=limited_protocol(service),
            ws="none",
            log_level="error",
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=service.cfg.drain_seconds,
        )
    )


def _opened_port(cfg: ServeConfig) -> socket.socket:
    """Return a socket that listens on the port of a config; who connects waits until requests are answered.

    Raises:
        UserError: the port cannot be opened.
    """
    family = socket.AF_INET6 if ":" in cfg.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((cfg.host, cfg.port))
        listening.listen(1024)
    except OSError as error:
        raise UserError(
            f"port {cfg.port} of {cfg.host} cannot be opened ({error.strerror})\n    -> set port to another, or to 0 for any"
        ) from error
    return listening


if __name__ == "__main__":
    run_command(__doc__, run)
