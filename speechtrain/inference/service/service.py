"""The service: models behind queues, what requests may hold and how they are read; `application.py` has the routes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from fastapi import Request
from starlette.requests import ClientDisconnect

from speechtrain.config.experiment import class_name
from speechtrain.data.audio import Audio, RecordingReader
from speechtrain.errors import ConfigError, DataError, Problem, UserError
from speechtrain.inference.service.access import Access
from speechtrain.inference.service.live import Live
from speechtrain.inference.service.memory import Memory
from speechtrain.inference.service.metrics import Metrics
from speechtrain.inference.service.models import Engine, ServedModel
from speechtrain.inference.service.refusals import Refusal
from speechtrain.inference.service.schemas import Health
from speechtrain.inference.service.uploads import Upload, receive

if TYPE_CHECKING:
    from speechtrain.config.schemas.commands import ServeConfig
    from speechtrain.inference.recognizer import Recognizer
    from speechtrain.tasks.base import Transcription

_SLACK = 0.1  # s by which decoded audio may exceed what is allowed, for resamplers and formats pad


@dataclass(frozen=True)
class Heard:
    """What was recognised in the recording of a request.

    Attributes:
        upload: what the request has sent, without the audio.
        seconds: duration of the recording.
        latency: s from the last byte of the request.
    """

    model: ServedModel
    upload: Upload
    transcription: Transcription
    seconds: float
    latency: float


class Service:
    """Serves models, each behind a queue of requests.

    Args:
        recognizers: the loaded models by the names that clients ask for; the first answers those that ask for none.
        cfg: config of `conf/serve.yaml`.

    Raises:
        ConfigError: the memory is less than one request may take, or the file of tokens cannot be used.
    """

    def __init__(self, recognizers: Mapping[str, Recognizer], cfg: ServeConfig) -> None:
        self.cfg = cfg
        self.access = Access(cfg)
        self.memory = Memory(_most_memory(cfg, max(each.sample_rate for each in recognizers.values())))
        self.engine = Engine()
        self.live = Live(self)
        self.metrics = Metrics(waiting=self._waiting, held=lambda: self.memory.held, streams=lambda: self.live.open)
        self.registry = self.metrics.registry
        self.models = {
            name: ServedModel(name, recognizer, self.engine, self.memory, self.metrics, cfg.queue)
            for name, recognizer in recognizers.items()
        }
        self._readers = ThreadPoolExecutor(2, "read")
        self._started = time.monotonic()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compute what waits for the models until the block ends."""
        workers = [asyncio.create_task(model.work()) for model in self.models.values()]
        yield
        for worker in workers:
            worker.cancel()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self.engine.close()

    def model(self, name: str | None) -> ServedModel:
        """Return the model of a name; without one, the first.

        Raises:
            Refusal: there is no such model.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            reason = f"there is no model '{name[:100]}' here; ask for {' or '.join(self.models)}"
            raise Refusal(404, reason, param="model", code="model_not_found")
        return self.models[name]

    async def hear(self, request: Request, check: Callable[[Upload], None] | None = None) -> Heard:
        """Read the recording of a request and transcribe it, as long as the client waits.

        Args:
            request: its body is a file of audio, or a form with one as `file` and the name of a model as `model`, which may also stand in
                the query.
            check: raises a `Refusal` if it finds fields that are wrong, before anything is computed.

        Raises:
            Refusal: the request is refused, or all memory is taken.
            ClientDisconnect: the client has left.
        """
        name = request.query_params.get("model")
        self.model(name).check_room()
        with self.memory.share() as share:
            upload = await receive(request, self.cfg, share)
            start = time.perf_counter()
            if check is not None:
                check(upload)
            model = self.model(upload.value("model") or name)
            samples = await self._decoded(model, upload)
        upload.audio = b""
        transcription = await self._transcribed(model, request, samples)
        took = time.perf_counter() - start
        self.metrics.latency.observe(took)
        return Heard(model, upload, transcription, len(samples) / model.recognizer.sample_rate, took)

    async def _decoded(self, model: ServedModel, upload: Upload) -> Audio:
        """Return the samples (N,) of a file at the model's rate; they are held until they are computed.

        Raises:
            Refusal: it is no audio, too long, or all memory is taken.
        """
        try:
            samples = await asyncio.get_running_loop().run_in_executor(self._readers, self._read, model.recognizer, upload)
        except DataError as error:
            raise Refusal(400, str(error)) from None
        self.memory.take(samples.nbytes)
        return samples

    async def _transcribed(self, model: ServedModel, request: Request, samples: Audio) -> Transcription:
        """Wait for the model's answer, as long as the client does.

        Raises:
            Refusal: too many requests wait, or the model refuses the audio.
            ClientDisconnect: the client has left.
        """
        answer = model.put(samples)
        left = asyncio.ensure_future(request.receive())  # behind the body comes only the end of the connection
        try:
            await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return answer.result()
        except UserError as error:
            raise Refusal(400, str(error)) from None
        finally:
            left.cancel()
            answer.cancel()

    def _read(self, recognizer: Recognizer, upload: Upload) -> Audio:
        if not upload.audio:
            how = "the form has no file; send one as 'file'" if upload.is_form else "the request has no body; send an audio file as it"
            raise DataError(how)
        reader = RecordingReader(upload.audio, recognizer.sample_rate, longest=float(self.cfg.max_seconds), channel=recognizer.channel)
        blocks = list(reader.blocks())
        if not blocks:
            raise DataError("the audio is too short to have a sample at the model's rate")
        return np.concatenate(blocks)

    def count(self, status: str) -> None:
        """Count a request by the status that it was answered with."""
        self.metrics.requests.labels(status).inc()

    def health(self) -> Health:
        """Return what is served, and how it goes."""
        recognizer = self.model(None).recognizer
        busy, audio = (self.metrics.value(f"{name}_seconds_total") for name in ("model", "audio"))
        return Health(
            status="ok",
            model=class_name(recognizer.cfg.model),
            backend=recognizer.backend.name,
            sample_rate=recognizer.sample_rate,
            models=list(self.models),
            uptime=round(time.monotonic() - self._started, 1),
            waiting=self._waiting(),
            streams=self.live.open,
            real_time_factor=round(busy / audio, 5) if audio else None,
        )

    def _waiting(self) -> int:
        return sum(model.queue.qsize() for model in self.models.values())


def _most_memory(cfg: ServeConfig, sample_rate: int) -> int:
    """Return how many bytes all requests may hold together.

    Raises:
        ConfigError: they are fewer than one request takes.
    """
    greatest = int(cfg.max_megabytes * 1e6) + int(4 * (cfg.max_seconds + _SLACK) * sample_rate)
    most = 8 * greatest if cfg.memory_megabytes is None else int(cfg.memory_megabytes * 1e6)
    if most < greatest:
        message = f"is {cfg.memory_megabytes:g}, and one request of max_megabytes and max_seconds takes {greatest / 1e6:.0f}"
        raise ConfigError([Problem("memory_megabytes", message, "set it to several times that, or max_seconds and max_megabytes to less")])
    return most
