"""The HTTP service: requests are collected into batches and recognised together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from speechtrain.config.experiment import class_name
from speechtrain.config.schemas.commands import ServeConfig
from speechtrain.data.audio import RecordingReader
from speechtrain.errors import ConfigError, DataError, Problem, UserError

if TYPE_CHECKING:
    import numpy.typing as npt
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from speechtrain.inference.recognizer import Recognizer
    from speechtrain.tasks.base import Transcription


log = logging.getLogger(__name__)

_TOGETHER = 16  # greatest number of requests in a batch
_LEFT = "499"  # what nginx, too, counts a request as whose client has left before the answer
_QUEUE_IS_FULL = "too many requests wait; try again"
_SLACK = 0.1  # s by which decoded audio may exceed what is allowed, for resamplers and formats pad

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # s


@dataclass
class _Waiting:
    samples: npt.NDArray[np.float32]
    answer: asyncio.Future[Transcription]


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
            HTTPException: there would be too many.
        """
        if self.held + count > self.most:
            raise _refusal(503, "other requests take all memory; try again")
        self.held += count

    def give_back(self, count: int) -> None:
        """Count bytes that are no longer held."""
        self.held -= count


def _refusal(status: int, reason: str) -> HTTPException:
    return HTTPException(status, reason, {"Retry-After": "1"} if status == 503 else None)


class Service:
    """Serves a model behind a queue of requests.

    Args:
        recognizer: the loaded model.
        cfg: config of `conf/serve.yaml`.
    """

    def __init__(self, recognizer: Recognizer, cfg: ServeConfig) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.recognizer = recognizer
        self._most_bytes = int(cfg.max_megabytes * 1e6)
        self._most_seconds = float(cfg.max_seconds)
        self.cfg = cfg
        greatest = self._most_bytes + int(4 * (cfg.max_seconds + _SLACK) * recognizer.sample_rate)
        self._memory = Memory(8 * greatest if cfg.memory_megabytes is None else int(cfg.memory_megabytes * 1e6))
        if self._memory.most < greatest:
            raise ConfigError(
                [
                    Problem(
                        "memory_megabytes",
                        f"is {cfg.memory_megabytes:g}, and one request of max_megabytes and max_seconds takes {greatest / 1e6:.0f}",
                        "set it to several times that, or max_seconds and max_megabytes to less",
                    )
                ]
            )
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(cfg.queue)
        self._readers = ThreadPoolExecutor(2, "read")
        self._model = ThreadPoolExecutor(1, "model")  # one batch at a time: the model itself has the cores
        self.registry = CollectorRegistry()
        name = "speechtrain_"
        self._requests = Counter(f"{name}requests", "Requests by their status", ["status"], registry=self.registry)
        self._latency = Histogram(
            f"{name}latency_seconds", "From a request's last byte to its answer", buckets=_BUCKETS, registry=self.registry
        )
        self._audio = Counter(f"{name}audio_seconds", "Audio that was transcribed", registry=self.registry)
        self._busy = Counter(
            f"{name}model_seconds", "Time that the model worked; over audio_seconds it is the real-time factor", registry=self.registry
        )
        self._batch = Histogram(f"{name}batch_size", "Requests computed together", buckets=(1, 2, 4, 8, 16), registry=self.registry)
        Gauge(f"{name}queue_length", "Requests that wait", registry=self.registry).set_function(self._queue.qsize)
        Gauge(f"{name}held_bytes", "Bodies and decoded audio", registry=self.registry).set_function(lambda: self._memory.held)
        self._started = time.monotonic()

    async def work(self) -> None:
        """Compute the requests that wait, until the task is cancelled."""
        while True:
            some = [await self._queue.get()]
            while len(some) < _TOGETHER and not self._queue.empty():
                some.append(self._queue.get_nowait())
            wanted = [each for each in some if not each.answer.done()]  # the clients of the others have gone
            if wanted:
                await self._answer(wanted)
            for each in some:
                self._memory.give_back(each.samples.nbytes)

    async def _answer(self, some: list[_Waiting]) -> None:
        """Compute requests together, and each on its own where they fail together, so that one does not spoil the others."""
        start = time.perf_counter()
        try:
            transcriptions = await asyncio.get_running_loop().run_in_executor(self._model, self._compute, [each.samples for each in some])
        except Exception as error:  # noqa: BLE001 # one bad request must not end the service
            if len(some) > 1:
                for each in some:
                    await self._answer([each])
            elif not some[0].answer.done():
                some[0].answer.set_exception(error)
            return
        self._busy.inc(time.perf_counter() - start)
        self._batch.observe(len(some))
        for each, answer in zip(some, transcriptions, strict=True):
            self._audio.inc(len(each.samples) / self.recognizer.sample_rate)
            if not each.answer.done():
                each.answer.set_result(answer)

    def _compute(self, audios: Sequence[npt.NDArray[np.float32]]) -> list[Transcription]:
        """Transcribe short recordings together, and long ones in windows."""
        from speechtrain.inference.long_audio import joined, transcribe_long

        recognizer = self.recognizer
        transcriptions: dict[int, Transcription] = {}
        short = [index for index, samples in enumerate(audios) if len(samples) <= 30 * recognizer.sample_rate]
        if not recognizer.task.timed:
            short = list(range(len(audios)))
        order = sorted(short, key=lambda index: len(audios[index]))  # little padding
        transcriptions.update(zip(order, recognizer.transcribe_all([audios[index] for index in order]), strict=True))
        for index in set(range(len(audios))) - set(short):
            transcriptions[index] = joined(list(transcribe_long(recognizer, iter([audios[index]]))))
        return [transcriptions[index] for index in range(len(audios))]

    async def transcribe(self, request: Request) -> Response:
        """Answer POST /transcribe, whose body is an audio file."""
        if self._queue.full():
            raise _refusal(503, _QUEUE_IS_FULL)
        with self._body() as body:
            await self._receive(request, body)
            start = time.perf_counter()
            samples = await self._decoded(body)
        transcription = await self._transcribed(request, samples)
        took = time.perf_counter() - start
        self._latency.observe(took)
        seconds = len(samples) / self.recognizer.sample_rate
        answer: dict[str, Any] = {
            "text": transcription.text,
            "confidence": round(transcription.confidence, 4),
            "seconds": round(seconds, 3),
        }
        answer["latency"] = round(took, 4)
        if request.query_params.get("words", "").lower() in ("1", "true", "yes"):
            answer["words"] = [
                {"text": w.text, "start": round(w.start, 3), "end": round(w.end, 3), "confidence": round(w.confidence, 4)}
                for w in transcription.words
            ]
        return JSONResponse(answer)

    @contextlib.contextmanager
    def _body(self) -> Iterator[bytearray]:
        """Give what the body of a request goes to; its bytes, which `_receive` counts, are no longer held when the block ends."""
        body = bytearray()
        try:
            yield body
        finally:
            self._memory.give_back(len(body))

    async def _receive(self, request: Request, body: bytearray) -> None:
        """Read the body of a request.

        Raises:
            HTTPException: it is too large, comes too slowly, or all memory is taken.
        """
        too_large = _refusal(413, f"a request may have {self._most_bytes / 1e6:g} MB; this one has more")
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self._most_bytes:
            raise too_large
        cfg = self.cfg
        begin = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(begin + cfg.body_seconds) as limit:
                async for part in request.stream():
                    if len(body) + len(part) > self._most_bytes:
                        raise too_large
                    self._memory.take(len(part))
                    body += part
                    limit.reschedule(begin + cfg.body_seconds + min(len(body) / cfg.min_rate, cfg.max_seconds))
        except TimeoutError:
            raise _refusal(408, f"{len(body)} bytes of the request have come; send at least {cfg.min_rate:g} in a second") from None

    async def _decoded(self, body: bytearray) -> npt.NDArray[np.float32]:
        """Return the samples (N,) of a body at the model's rate; they are held until they are computed.

        Raises:
            HTTPException: it is no audio, too long, or all memory is taken.
        """
        try:
            samples = await asyncio.get_running_loop().run_in_executor(self._readers, self._read, body)
        except DataError as error:
            raise _refusal(400, str(error)) from None
        self._memory.take(samples.nbytes)
        return samples

    async def _transcribed(self, request: Request, samples: npt.NDArray[np.float32]) -> Transcription:
        """Wait for the model's answer, as long as the client does.

        Raises:
            HTTPException: too many requests wait, or the model refuses the audio.
            ClientDisconnect: the client has left.
        """
        waiting = _Waiting(samples, asyncio.get_running_loop().create_future())
        try:
            self._queue.put_nowait(waiting)
        except asyncio.QueueFull:
            self._memory.give_back(samples.nbytes)
            raise _refusal(503, _QUEUE_IS_FULL) from None
        left = asyncio.ensure_future(request.receive())  # behind the body comes only the end of the connection
        try:
            await asyncio.wait((waiting.answer, left), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.answer.done():
                raise ClientDisconnect
            return waiting.answer.result()
        except UserError as error:
            raise _refusal(400, str(error)) from None
        finally:
            left.cancel()
            waiting.answer.cancel()

    def _read(self, body: bytearray) -> npt.NDArray[np.float32]:
        if not body:
            raise DataError("the request has no body; send an audio file as it")
        reader = RecordingReader(body, self.recognizer.sample_rate, longest=self._most_seconds, channel=self.recognizer.channel)
        blocks = list(reader.blocks())
        if not blocks:
            raise DataError("the audio is too short to have a sample at the model's rate")
        return np.concatenate(blocks)

    def count(self, status: str) -> None:
        """Count a request by the status that it was answered with."""
        self._requests.labels(status).inc()

    def _counted(self, app: ASGIApp) -> ASGIApp:
        """Return an application that counts the requests of another by their statuses, and answers those that it fails at."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status = ""

            async def noted(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = str(message["status"])
                await send(message)

            try:
                await app(scope, receive, noted)
            except ClientDisconnect:
                status = _LEFT
            except asyncio.CancelledError:  # uvicorn ends, and this request is not done
                await _as_json(None, _refusal(503, "the service ends"))(scope, receive, noted)
            except Exception:
                log.exception("a request cannot be answered")
                await _as_json(None, _refusal(500, "the service has failed at this request"))(scope, receive, noted)
            if status != "200" or scope["path"] == "/transcribe":
                self.count(status)

        return counted

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """Answer GET /health with what is served."""
        busy, audio = (self.registry.get_sample_value(f"speechtrain_{name}_seconds_total") or 0.0 for name in ("model", "audio"))
        return JSONResponse(
            {
                "status": "ok",
                "model": class_name(self.recognizer.cfg.model),
                "backend": self.recognizer.backend.name,
                "sample_rate": self.recognizer.sample_rate,
                "uptime": round(time.monotonic() - self._started, 1),
                "waiting": self._queue.qsize(),
                "real_time_factor": round(busy / audio, 5) if audio else None,
            }
        )

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """Answer GET /metrics in Prometheus' text form."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def app(self) -> Starlette:
        """Build the application that an ASGI server runs."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            worker = asyncio.create_task(self.work())
            yield
            worker.cancel()
            self._readers.shutdown(wait=False, cancel_futures=True)
            self._model.shutdown(wait=False, cancel_futures=True)

        routes = [
            Route("/transcribe", self.transcribe, methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]
        return Starlette(
            routes=routes,
            lifespan=lifespan,
            middleware=[Middleware(self._counted)],
            exception_handlers={HTTPException: _as_json},
        )


def _as_json(_: Request | None, refusal: Exception) -> Response:
    assert isinstance(refusal, HTTPException)
    return JSONResponse({"error": refusal.detail}, refusal.status_code, refusal.headers)
