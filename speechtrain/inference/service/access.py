"""Who may use the service: bearer tokens (RFC 6750) from a file, and how many requests each may send in a minute."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from speechtrain.errors import ConfigError, Problem
from speechtrain.files import user_path
from speechtrain.inference.service.refusals import Refusal

if TYPE_CHECKING:
    from speechtrain.config.schemas.commands import ServeConfig

_SHORTEST = 16
_MAKE_ONE = "python -c 'import secrets; print(secrets.token_urlsafe(32))' > FILE writes one"


@dataclass
class _Allowance:
    left: float
    since: float


class Access:
    """Admits requests by their tokens, and everybody if there are none.

    Args:
        cfg: has the file of tokens and the limit.
        clock: returns the time in s.

    Raises:
        ConfigError: the file has no tokens, or some that could be guessed.
    """

    def __init__(self, cfg: ServeConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit = cfg.requests_per_minute
        now = clock()
        # digests, because how long a dictionary takes to find one tells nothing about a token
        self._allowances = {_digest(token): _Allowance(float(self._limit or 0), now) for token in read_tokens(cfg.token_file)}

    @property
    def is_open(self) -> bool:
        """Return whether everybody may use the service."""
        return not self._allowances

    def admit(self, token: str | None) -> None:
        """Count a request with a token, or without one.

        Raises:
            Refusal: it is none of those in the file, or has sent too many requests.
        """
        if self.is_open:
            return
        if token is None:
            raise Refusal(HTTPStatus.UNAUTHORIZED, "a token is needed; send it as 'Authorization: Bearer TOKEN'", code="invalid_api_key")
        allowance = self._allowances.get(_digest(token))
        if allowance is None:
            raise Refusal(HTTPStatus.UNAUTHORIZED, "the token is not known here", code="invalid_api_key")
        if self._limit is None:
            return
        now = self._clock()
        allowance.left = min(self._limit, allowance.left + (now - allowance.since) * self._limit / 60)
        allowance.since = now
        if allowance.left < 1:
            wait = math.ceil((1 - allowance.left) * 60 / self._limit)
            reason = f"a token may send {self._limit:g} requests a minute; try again in {wait} s"
            raise Refusal(HTTPStatus.TOO_MANY_REQUESTS, reason, code="rate_limit_exceeded", retry_after=wait)
        allowance.left -= 1


def token_in(header: str | None) -> str | None:
    """Return the token of an Authorization header; None: it has none."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def read_tokens(name: str | None) -> list[str]:
    """Read a file of tokens, one a line; lines that are empty or begin with # are left out. Without a file there are none.

    Raises:
        ConfigError: it cannot be read, has none, or some that are too short or no printable ASCII.
    """
    if name is None:
        return []
    path = user_path(name)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ConfigError([Problem("token_file", f"{path} cannot be read ({reason})", _MAKE_ONE)]) from None
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise ConfigError([Problem("token_file", f"{path} has no tokens", _MAKE_ONE)])
    for number, line in enumerate(lines, start=1):
        if line in tokens and (len(line) < _SHORTEST or not line.isascii() or not line.isprintable() or " " in line):
            message = f"{path}, line {number}: a token has at least {_SHORTEST} characters, printable ASCII without spaces"
            raise ConfigError([Problem("token_file", message, _MAKE_ONE)])
    return tokens


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
