"""The routes of the service as an ASGI application, and their description in OpenAPI."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response

from speechtrain.inference.service.access import token_in
from speechtrain.inference.service.connections import LIVE
from speechtrain.inference.service.live import words_of
from speechtrain.inference.service.openai_api import GRANULARITIES, RESPONSE_FORMATS, OpenAIRoutes
from speechtrain.inference.service.pages import Pages
from speechtrain.inference.service.refusals import Refusal, answer_refusal
from speechtrain.inference.service.schemas import Health, Model, Models, OpenAIRefused, Refused, Text, Transcript

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from speechtrain.inference.service.service import Service

log = logging.getLogger(__name__)

_LEFT = "499"  # what nginx, too, counts a request as whose client has left before the answer
_TRUE = ("1", "true", "yes")
_AUDIO = {"type": "string", "format": "binary", "description": "WAV, FLAC, OGG, Opus, MP3, AIFF, AU, CAF or SPH"}
_REASONS = {
    400: "the audio or the request cannot be read",
    401: "a token is needed, or this one is not known",
    404: "no such model",
    408: "the body came too slowly",
    413: "too many bytes",
    429: "too many requests of this token",
    503: "the service is busy; try again",
}
_ABOUT = """Transcription of speech by the models that are served here.

A live signal goes to the WebSocket `/stream`, which OpenAPI cannot describe: send `{"rate": 16000, "encoding": "pcm16"}` (or `float32`;
`model`, `partials` and `token` may stand beside), samples as binary messages, then `{"type": "end"}`. What comes back has the types
`ready`, `partial`, `final`, `done` and `error`."""


def application(service: Service, version: str = "0") -> FastAPI:
    """Build the application that an ASGI server runs; its description names a version."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    bearer = HTTPBearer(auto_error=False, description="a line of the file `token_file`", scheme_name="token")

    async def admitted(request: Request) -> None:
        service.access.admit(token_in(request.headers.get("authorization")))

    app = FastAPI(
        title="speechtrain",
        version=version,
        description=_ABOUT,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        middleware=[Middleware(_Counted, service=service)],
        exception_handlers={HTTPException: _refused, RequestValidationError: _refused},
    )
    guard = [] if service.access.is_open else [Depends(bearer), Depends(admitted)]
    own, openai = OwnRoutes(service), OpenAIRoutes(service)
    refused, openai_refused = _refusals(Refused), _refusals(OpenAIRefused)
    for path, answer in (("/transcribe", own.transcribe), ("/v1/audio/transcriptions", openai.transcriptions)):
        app.add_route(path, _admitted(service, answer), methods=["POST"], include_in_schema=False)  # FastAPI's way to a route takes longer
    routes = APIRouter(dependencies=guard)
    routes.post("/transcribe", response_model=Transcript, openapi_extra=_TRANSCRIBE, responses=refused)(own.transcribe)
    routes.get("/metrics", response_class=PlainTextResponse)(own.metrics)
    routes.head("/metrics", include_in_schema=False)(own.metrics)
    routes.post("/v1/audio/transcriptions", response_model=Text, openapi_extra=_OPENAI, responses=openai_refused)(openai.transcriptions)
    routes.get("/v1/models", response_model=Models)(openai.models)
    routes.get("/v1/models/{model:path}", response_model=Model, responses=openai_refused)(openai.one_model)
    app.include_router(routes)
    app.get("/health", response_model=Health)(own.health)
    app.head("/health", include_in_schema=False)(own.health)
    app.websocket(LIVE)(service.live.serve)
    app.get(LIVE, include_in_schema=False)(own.upgrade_needed)
    Pages().add_to(app)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    return answer_refusal(request, error)


def _admitted(service: Service, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Return a route that admits requests before it answers them."""

    async def admitted(request: Request) -> Response:
        service.access.admit(token_in(request.headers.get("authorization")))
        return await answer(request)

    return admitted


class OwnRoutes:
    """Answers in our own form.

    Args:
        service: has the models.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def transcribe(self, request: Request) -> Response:
        """Transcribe a recording: the body is a file of audio, or a form with one."""
        heard = await self._service.hear(request)
        transcription = heard.transcription
        answer: dict[str, Any] = {
            "text": transcription.text,
            "confidence": round(transcription.confidence, 4),
            "seconds": round(heard.seconds, 3),
            "latency": round(heard.latency, 4),
        }
        if (heard.upload.value("words") or request.query_params.get("words", "")).lower() in _TRUE:
            answer["words"] = words_of(transcription)
        return JSONResponse(answer)

    async def health(self) -> Response:
        """Say what is served, and how it goes."""
        return JSONResponse(self._service.health().model_dump())

    async def metrics(self) -> Response:
        """Give the metrics in Prometheus' text form."""
        return self._service.metrics.page()

    async def upgrade_needed(self) -> Response:
        """Refuse a request to /stream that is no WebSocket.

        Raises:
            Refusal: always.
        """
        raise Refusal(426, "/stream is a WebSocket; see /docs")


class _Counted:
    """Counts the requests of an application by their statuses, and answers those that it fails at."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = ""

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        async def refuse(refusal: Refusal) -> None:
            await answer_refusal(Request(scope), refusal)(scope, receive, noted)

        try:
            await self._app(scope, receive, noted)
        except ClientDisconnect:
            status = _LEFT
        except asyncio.CancelledError:  # uvicorn ends, and this request is not done
            await refuse(Refusal(503, "the service ends"))
        except Exception:
            log.exception("a request cannot be answered")
            await refuse(Refusal(500, "the service has failed at this request"))
        if status != "200" or scope["path"] in ("/transcribe", "/v1/audio/transcriptions"):
            self._service.count(status)


def _refusals(model: type[Refused] | type[OpenAIRefused]) -> dict[int | str, dict[str, Any]]:
    """Describe the answers to requests that are refused."""
    return {status: {"model": model, "description": reason} for status, reason in _REASONS.items()}


def _form(required: list[str], **properties: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a form with a file and further fields."""
    return {"schema": {"type": "object", "required": ["file", *required], "properties": {"file": _AUDIO, **properties}}}


_MODEL = {"type": "string", "description": "name of a model, as /v1/models has them"}
_WORDS = {"type": "boolean", "default": False, "description": "whether words with their times are wanted"}
_TRANSCRIBE: dict[str, Any] = {
    "parameters": [
        {"name": "words", "in": "query", "schema": _WORDS},
        {"name": "model", "in": "query", "schema": {**_MODEL, "description": "without one, the first model answers"}},
    ],
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": _form([], model=_MODEL, words=_WORDS), "audio/*": {"schema": _AUDIO}},
    },
}
_IGNORED = {"type": "string", "description": "accepted, and changes nothing"}
_OPENAI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": _form(
                ["model"],
                model=_MODEL,
                response_format={"type": "string", "enum": list(RESPONSE_FORMATS), "default": "json"},
                **{"timestamp_granularities[]": {"type": "array", "items": {"type": "string", "enum": list(GRANULARITIES)}}},
                language=_IGNORED,
                prompt=_IGNORED,
                temperature=_IGNORED,
            )
        },
    }
}
