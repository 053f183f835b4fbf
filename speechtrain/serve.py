"""`python -m speechtrain.serve`: trained models over HTTP and WebSocket.

    python -m speechtrain.serve from=last port=8080                 the page is at http://127.0.0.1:8080, its API at /docs
    curl -F file=@a.wav -F words=true localhost:8080/transcribe
    curl -F file=@a.wav -F model=last localhost:8080/v1/audio/transcriptions
    curl localhost:8080/health ; curl localhost:8080/metrics
    python -m speechtrain.serve 'from={digits: last, letters: b.zip}' token_file=tokens tls_certificate=cert.pem tls_key=key.pem

Requests wait in a queue for their model; those that wait together are computed together. What MLflow serves (`mlflow models
serve`) is the same model with MLflow's protocol; see docs/serve.md. Keys are those of conf/serve.yaml, and `decoder` and `backend` as
in training.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING

import speechtrain
from speechtrain.app.arguments import arguments_of
from speechtrain.app.command import run_command
from speechtrain.config.schemas.commands import ServeConfig
from speechtrain.console import console
from speechtrain.errors import ConfigError, Problem, UserError, first_line
from speechtrain.files import is_file, user_path
from speechtrain.inference.find import load_for, model_names
from speechtrain.processes import interrupts

if TYPE_CHECKING:
    import uvicorn

    from speechtrain.inference.service.service import Service


def run(arguments: list[str]) -> int:
    """Serve models with the keys of conf/serve.yaml, and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg, overrides = arguments_of(ServeConfig, arguments)
    names = model_names(cfg.source)
    _check_tls(cfg)
    with _opened_port(cfg) as listening:
        from speechtrain.inference.service.access import read_tokens

        read_tokens(cfg.token_file)
        recognizers = {name: load_for(replace(cfg, source=source), overrides) for name, source in names.items()}
        from speechtrain.inference.service.service import Service

        service = Service(recognizers, cfg)
        for recognizer in recognizers.values():
            recognizer.transcribe([0.0] * recognizer.sample_rate)  # the first pass is slow, so it is not left to the first request
        port = listening.getsockname()[1]
        scheme = "http" if cfg.tls_certificate is None else "https"
        what = "a page; /docs, POST /transcribe, POST /v1/audio/transcriptions, WebSocket /stream, /health, /metrics"
        console.print(f"serving     {scheme}://{cfg.host}:{port}   ({what})", markup=False)
        with contextlib.suppress(KeyboardInterrupt):
            server_of(service).run(sockets=[listening])
        interrupts.forget()  # a signal is how serving ends
    return 0


def server_of(service: Service) -> uvicorn.Server:
    """Return the server of a service, with its limits."""
    import uvicorn

    from speechtrain.inference.service.application import application
    from speechtrain.inference.service.connections import limited_protocol, limited_websocket
    from speechtrain.inference.service.live import MOST_IN_MESSAGE

    cfg = service.cfg
    return uvicorn.Server(
        uvicorn.Config(
            application(service, speechtrain.__version__),
            http=limited_protocol(service),
            ws=limited_websocket(service),
            ws_max_size=MOST_IN_MESSAGE,
            ws_per_message_deflate=False,
            loop="auto" if cfg.tls_certificate is None else "speechtrain.inference.service.connections:loop_for_tls",
            ssl_certfile=None if cfg.tls_certificate is None else user_path(cfg.tls_certificate),
            ssl_keyfile=None if cfg.tls_key is None else user_path(cfg.tls_key),
            log_level="error",
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=cfg.drain_seconds,
        )
    )


def _check_tls(cfg: ServeConfig) -> None:
    """Check that the certificate and its key can be used.

    Raises:
        ConfigError: they cannot be read, or do not belong together.
    """
    if cfg.tls_certificate is None:
        return
    certificate, key = user_path(cfg.tls_certificate), None if cfg.tls_key is None else user_path(cfg.tls_key)
    fix = "give PEM files that belong together, of a key without a password"
    for name, path in (("tls_certificate", certificate), ("tls_key", key)):
        if path is not None and not is_file(path):
            raise ConfigError([Problem(name, f"there is no file {path}", fix)])
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise ConfigError([Problem("tls_certificate", f"{certificate} cannot be used ({first_line(error)})", fix)]) from None


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
