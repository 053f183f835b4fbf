"""Why a request is refused: the status, the reason, and the form in which each kind of client expects it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

OPENAI = "/v1/"
"""Routes below it answer in the form of OpenAI's API."""

_KINDS = {401: "authentication_error", 408: "timeout", 429: "rate_limit_error"}


class Refusal(HTTPException):
    """Refuses a request with the reason.

    Args:
        status: status of HTTP.
        reason: what was wrong, and what to do.
        param: the field of a form that is wrong.
        code: the word by which clients of OpenAI's API know the reason.
        retry_after: s after which another try may succeed; None: none is named, but with 503 it is one second.
    """

    def __init__(
        self, status: int, reason: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        if retry_after is None and status == HTTPStatus.SERVICE_UNAVAILABLE:
            retry_after = 1
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(int(status), reason, headers or None)
        self.param = param
        self.code = code


def answer_refusal(request: Request | None, error: Exception) -> Response:
    """Return the answer to a request that is refused, as JSON in the form of the route."""
    if isinstance(error, RequestValidationError):
        error = Refusal(400, "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()))
    assert isinstance(error, HTTPException)
    said: Any = error.detail
    if request is not None and request.url.path.startswith(OPENAI):
        status = error.status_code
        said = {
            "message": error.detail,
            "type": _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error"),
            "param": getattr(error, "param", None),
            "code": getattr(error, "code", None),
        }
    return JSONResponse({"error": said}, error.status_code, error.headers)
