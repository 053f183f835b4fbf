"""The HTTP service: requests are collected into batches and recognised together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from speechtrain.config.experiment import class_name
from speechtrain.config.schemas.commands import ServeConfig
from speechtrain.data.audio import RecordingReader
from speechtrain.errors import DataError, UserError

if TYPE_CHECKING:
    import numpy.typing as npt
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from speechtrain.inference.recognizer import Recognizer
    from speechtrain.tasks.base import Transcription


_TOGETHER = 16  # greatest number of requests in a batch


_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # s


@dataclass
class _Waiting:
    samples: npt.NDArray[np.float32]
    answer: asyncio.Future[Transcription]


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
        self._started = time.monotonic()

    async def work(self) -> None:
        """Compute the requests that wait, until the task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            some = [await self._queue.get()]
            while len(some) < _TOGETHER and not self._queue.empty():
                some.append(self._queue.get_nowait())
            some = [each for each in some if not each.answer.done()]  # of clients that have gone
            if not some:
                continue
            start = time.perf_counter()
            try:
                transcriptions = await loop.run_in_executor(self._model, self._compute, [each.samples for each in some])
            except Exception as error:  # noqa: BLE001 # one bad request must not end the service
                for each in some:
                    if not each.answer.done():
                        each.answer.set_exception(error)
                continue
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
        from starlette.responses import JSONResponse

        body = await self._body(request)
        if isinstance(body, str):
            return self._refused(413, body)
        start = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            samples = await loop.run_in_executor(self._readers, self._read, body)
        except DataError as error:
            return self._refused(400, str(error))
        waiting = _Waiting(samples, loop.create_future())
        try:
            self._queue.put_nowait(waiting)
        except asyncio.QueueFull:
            return self._refused(503, "too many requests wait; try again", {"Retry-After": "1"})
        try:
            transcription = await waiting.answer
        except UserError as error:
            return self._refused(400, str(error))
        took = time.perf_counter() - start
        self._latency.observe(took)
        self._requests.labels("200").inc()
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

    async def _body(self, request: Request) -> bytes | str:
        """Read the request's body; a text says why it is refused."""
        refused = f"a request may have {self._most_bytes / 1e6:g} MB; this one has more"
        if int(request.headers.get("content-length") or 0) > self._most_bytes:
            return refused
        parts = bytearray()
        async for part in request.stream():
            parts += part
            if len(parts) > self._most_bytes:
                return refused
        return bytes(parts)

    def _read(self, body: bytes) -> npt.NDArray[np.float32]:
        if not body:
            raise DataError("the request has no body; send an audio file as it")
        reader = RecordingReader(body, self.recognizer.sample_rate, longest=self._most_seconds)
        return np.concatenate(list(reader.blocks()))

    def _refused(self, status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
        from starlette.responses import JSONResponse

        self._requests.labels(str(status)).inc()
        return JSONResponse({"error": reason}, status, headers)

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """Answer GET /health with what is served."""
        from starlette.responses import JSONResponse

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
        from starlette.responses import Response

        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def app(self) -> Starlette:
        """Build the application that an ASGI server runs."""
        from starlette.applications import Starlette
        from starlette.routing import Route

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
        return Starlette(routes=routes, lifespan=lifespan)
