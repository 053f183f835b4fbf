"""WebSocket /stream: samples of a live signal in, partial and final texts out.

The client sends `{"rate": 16000, "encoding": "pcm16"}`, then samples as binary messages of any size, then `{"type": "end"}`. It gets
`{"type": "ready", ...}`, then `partial` and `final` texts with their words, and at last `done` with the whole text.
A model that streams (`inference/streaming.py`) has final texts at pauses; another one is computed in windows
(`inference/long_audio.py`), and its partial texts while nothing else is to be done. How the samples are divided into messages changes no
final text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse

from speechtrain.data.audio import LiveSamples
from speechtrain.errors import ConfigError, UserError
from speechtrain.inference.long_audio import LongTranscriber
from speechtrain.inference.service.access import token_in
from speechtrain.inference.service.refusals import Refusal
from speechtrain.inference.service.schemas import StreamEnd, StreamStart
from speechtrain.inference.streaming import LiveTranscriber

if TYPE_CHECKING:
    from speechtrain.inference.service.memory import Share
    from speechtrain.inference.service.models import ServedModel
    from speechtrain.inference.service.service import Service
    from speechtrain.tasks.base import Transcription

M = TypeVar("M", bound=BaseModel)

log = logging.getLogger(__name__)

MOST_IN_MESSAGE = 1 << 18  # bytes
_SLICE = 16 << 10  # bytes of a message that are resampled at once, for other rates may be a thousandth of the model's
_LEAST_SECONDS = 0.04  # of audio that is computed at a time, but at the end
_PARTIAL_SECONDS = 0.4  # of audio between two partial texts of a model that is computed in windows
_RESERVED = 4 * MOST_IN_MESSAGE  # bytes of buffers between the client and the model
_CLOSING = {401: 1008, 403: 1008, 408: 1008, 429: 1013, 503: 1013}
"""Close codes of RFC 6455 for statuses of HTTP: 1008, a policy is violated; 1013, try again later."""
_SERVER_FAILED = 1011


def words_of(transcription: Transcription) -> list[dict[str, Any]]:
    """Return the words of a text as objects for JSON; times are in s."""
    return [
        {"text": w.text, "start": round(w.start, 3), "end": round(w.end, 3), "confidence": round(w.confidence, 4)}
        for w in transcription.words
    ]


class Stream:
    """One live signal: bytes in, texts out. It computes in the thread of the models.

    Args:
        model: the model.
        start: the first message of the client.
        most_seconds: greatest duration.

    Raises:
        Refusal: the model gives no texts with times.
    """

    def __init__(self, model: ServedModel, start: StreamStart, most_seconds: float) -> None:
        recognizer = model.recognizer
        if not recognizer.task.timed:
            message = f"a model of the task {type(recognizer.task).__name__} hears whole recordings; POST them to /transcribe"
            raise Refusal(HTTPStatus.BAD_REQUEST, message)
        self.transcriber: LiveTranscriber | LongTranscriber
        try:
            self.transcriber = LiveTranscriber(recognizer)
        except ConfigError:  # the model hears whole utterances
            self.transcriber = LongTranscriber(recognizer)
        self._samples = LiveSamples(start.rate, recognizer.sample_rate, start.encoding)
        self._most_seconds = most_seconds
        self._partials = start.partials
        self._text = ""
        self._partial = ""
        self._partial_at = 0.0

    @property
    def seconds(self) -> float:
        """Return the duration of what has come."""
        return self._samples.received / self._samples.native

    def push(self, data: bytes, idle: bool) -> list[dict[str, Any]]:
        """Return messages for the client on samples that have come; `idle` says whether there is time for partial texts.

        Raises:
            UserError: the samples are no audio, or too many.
        """
        messages = self._final(self._heard(data))
        if not self._partials or not self._partial_is_due(idle):
            return messages
        self._partial_at = self.seconds
        partial = self.transcriber.partial()
        if partial is not None and partial.text != self._partial:
            self._partial = partial.text
            messages.append({"type": "partial", "text": partial.text, "words": words_of(partial)})
        return messages

    def finish(self, data: bytes) -> list[dict[str, Any]]:
        """Return the last messages for the client.

        Raises:
            UserError: see `push`.
        """
        messages = self._final(self._heard(data))
        messages += self._final(self.transcriber.push(self._samples.finish()))
        messages += self._final(self.transcriber.finish())
        return [*messages, {"type": "done", "text": self.transcriber.text, "seconds": round(self.seconds, 3)}]

    def _partial_is_due(self, idle: bool) -> bool:
        if isinstance(self.transcriber, LiveTranscriber):
            return self.transcriber.changed
        return idle and self.seconds >= self._partial_at + _PARTIAL_SECONDS

    def _heard(self, data: bytes) -> Iterator[Transcription]:
        for begin in range(0, len(data), _SLICE):
            samples = self._samples.push(data[begin : begin + _SLICE])
            if self.seconds > self._most_seconds:
                raise UserError(f"a stream may last {self._most_seconds:g} s; this one is longer")
            yield from self.transcriber.push(samples)

    def _final(self, texts: Iterable[Transcription]) -> list[dict[str, Any]]:
        messages = []
        for each in texts:
            if each.text:
                before, self._text, self._partial = self._text, self.transcriber.text, ""
                message = {"type": "final", "text": each.text, "confidence": round(each.confidence, 4), "words": words_of(each)}
                if before and self._text == before + each.text:
                    message["continues"] = True  # the last word, after a pause in it
                messages.append(message)
        return messages


class Live:
    """Answers WebSocket connections to /stream.

    Args:
        service: has models and limits.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.open = 0

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one connection until it ends."""
        try:
            authorised = self._check(websocket)
        except Refusal as error:
            self._service.count(str(error.status_code))
            await websocket.send_denial_response(JSONResponse({"error": error.detail}, error.status_code, error.headers))
            return
        self._service.count("101")
        self.open += 1
        try:
            with self._service.memory.share() as share:
                await websocket.accept()
                await self._answered(websocket, share, authorised=authorised)
        except WebSocketDisconnect:
            pass
        finally:
            self.open -= 1

    def _check(self, websocket: WebSocket) -> bool:
        """Return whether a connection has a token that is known; if not, its first message may have one.

        Raises:
            Refusal: too many streams are open, the page that asks is another server's, or the token is wrong.
        """
        origin = websocket.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != websocket.headers.get("host"):
            raise Refusal(HTTPStatus.FORBIDDEN, "a page of another server may not open a stream")
        if self.open >= self._service.cfg.streams:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many streams are open; try again")
        token = token_in(websocket.headers.get("authorization"))
        if token is None and not self._service.access.is_open:
            return False
        self._service.access.admit(token)
        return True

    async def _answered(self, websocket: WebSocket, share: Share, *, authorised: bool) -> None:
        """Run a stream, and say why where it cannot go on."""
        code = 1000
        try:
            await self._run(websocket, share, authorised=authorised)
        except (Refusal, UserError) as error:
            status = error.status_code if isinstance(error, Refusal) else 400
            code = _CLOSING.get(status, 1008)
            reason = error.detail if isinstance(error, Refusal) else str(error)
            await websocket.send_json({"type": "error", "status": status, "error": reason})
        except WebSocketDisconnect:
            raise
        except Exception:
            log.exception("a stream cannot go on")
            code = _SERVER_FAILED
            await websocket.send_json({"type": "error", "status": 500, "error": "the service has failed at this stream"})
        await websocket.close(code)

    async def _run(self, websocket: WebSocket, share: Share, *, authorised: bool) -> None:
        service, cfg = self._service, self._service.cfg
        share.hold(_RESERVED)
        first = await _message(websocket, cfg.header_seconds, "the first message")
        if not isinstance(first, str):
            raise Refusal(400, 'samples come behind a first message such as {"rate": 16000, "encoding": "pcm16"}')
        start = _parsed(StreamStart, first)
        if not authorised:
            service.access.admit(start.token)
        model = service.model(start.model)
        (stream, _) = await service.engine.run(Stream, model, start, cfg.stream_seconds)
        await websocket.send_json(
            {"type": "ready", "model": model.name, "sample_rate": model.recognizer.sample_rate, "incremental": stream.transcriber.exact}
        )
        size = 2 if start.encoding == "pcm16" else 4
        waiting = bytearray()
        ends_by = asyncio.get_running_loop().time() + cfg.stream_seconds + cfg.body_seconds
        while True:
            patience = min(cfg.body_seconds, ends_by - asyncio.get_running_loop().time())
            message = await _message(websocket, patience, "samples, or the end,")
            since = asyncio.get_running_loop().time()
            if isinstance(message, str):
                _parsed(StreamEnd, message)
                await self._compute(websocket, stream, stream.finish, waiting)
                return
            waiting += message
            if len(waiting) >= _LEAST_SECONDS * size * start.rate:
                idle = service.engine.idle
                data, waiting = waiting, bytearray()
                await self._compute(websocket, stream, stream.push, data, idle)
                share.hold(_RESERVED + stream.transcriber.nbytes)
                service.metrics.lag.observe(asyncio.get_running_loop().time() - since)

    async def _compute(self, websocket: WebSocket, stream: Stream, function: Any, data: bytearray, *more: bool) -> None:
        """Compute samples, and send what comes of them."""
        before = stream.seconds
        messages, took = await self._service.engine.run(function, bytes(data), *more)
        self._service.metrics.busy.inc(took)
        self._service.metrics.audio.inc(stream.seconds - before)
        for each in messages:
            await websocket.send_json(each)


async def _message(websocket: WebSocket, seconds: float, what: str) -> str | bytes:
    """Return the next message of a client.

    Raises:
        Refusal: it does not come in time.
        WebSocketDisconnect: the client has left.
    """
    try:
        async with asyncio.timeout(seconds):
            message = await websocket.receive()
    except TimeoutError:
        raise Refusal(408, f"{what} did not come within {seconds:.0f} s") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text: str | bytes | None = message.get("text")
    return text if text is not None else message["bytes"]


def _parsed(kind: type[M], text: str) -> M:
    """Read a message of JSON.

    Raises:
        Refusal: it is not what is expected.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'message'}: {each['msg']}" for each in error.errors()[:5])
        raise Refusal(400, f"the message cannot be read: {reasons[:500]}") from None
