"""A model behind a queue: requests that wait together are computed together, and live streams take turns with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from speechtrain.data.audio import Audio
from speechtrain.inference.long_audio import joined, transcribe_long
from speechtrain.inference.service.refusals import Refusal

if TYPE_CHECKING:
    from speechtrain.inference.recognizer import Recognizer
    from speechtrain.inference.service.memory import Memory
    from speechtrain.inference.service.metrics import Metrics
    from speechtrain.tasks.base import Transcription

R = TypeVar("R")

_TOGETHER = 16  # greatest number of requests in a batch
_WINDOW = 30.0  # s; longer recordings are computed in windows
QUEUE_IS_FULL = "too many requests wait; try again"


@dataclass
class _Waiting:
    samples: Audio
    answer: asyncio.Future[Transcription]


class Engine:
    """The one thread in which all models compute: a model itself has the cores."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "model")
        self._jobs = 0

    @property
    def idle(self) -> bool:
        """Return whether nothing is computed, and nothing waits to be."""
        return not self._jobs

    async def run(self, function: Callable[..., R], *arguments: object) -> tuple[R, float]:
        """Call a function in the thread, and return its result and the seconds that it took there."""

        def timed() -> tuple[R, float]:
            start = time.perf_counter()
            return function(*arguments), time.perf_counter() - start

        self._jobs += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, timed)
        finally:
            self._jobs -= 1

    def close(self) -> None:
        """Begin no computation any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class ServedModel:
    """A model with a queue of requests.

    Args:
        name: name by which clients ask for it.
        recognizer: the loaded model.
        engine: where it computes.
        memory: where the samples of requests are counted; they are given back when they have been computed.
        metrics: where batches and times are counted.
        most_waiting: greatest number of requests that may wait.
    """

    def __init__(self, name: str, recognizer: Recognizer, engine: Engine, memory: Memory, metrics: Metrics, most_waiting: int) -> None:
        self.name = name
        self.recognizer = recognizer
        self.loaded = int(time.time())
        self.queue: asyncio.Queue[_Waiting] = asyncio.Queue(most_waiting)
        self._engine = engine
        self._memory = memory
        self._metrics = metrics

    def check_room(self) -> None:
        """Check that another request may wait.

        Raises:
            Refusal: too many do.
        """
        if self.queue.full():
            raise Refusal(503, QUEUE_IS_FULL)

    def put(self, samples: Audio) -> asyncio.Future[Transcription]:
        """Let samples (N,) at the model's rate, which are counted as held, wait for the model; a cancelled answer is not computed.

        Raises:
            Refusal: too many requests wait; the samples are held no longer.
        """
        answer: asyncio.Future[Transcription] = asyncio.get_running_loop().create_future()
        try:
            self.queue.put_nowait(_Waiting(samples, answer))
        except asyncio.QueueFull:
            self._memory.give_back(samples.nbytes)
            raise Refusal(503, QUEUE_IS_FULL) from None
        return answer

    async def work(self) -> None:
        """Compute the requests that wait, until the task is cancelled."""
        while True:
            some = [await self.queue.get()]
            while len(some) < _TOGETHER and not self.queue.empty():
                some.append(self.queue.get_nowait())
            wanted = [each for each in some if not each.answer.done()]  # the clients of the others have gone
            if wanted:
                await self._answer(wanted)
            for each in some:
                self._memory.give_back(each.samples.nbytes)

    async def _answer(self, some: list[_Waiting]) -> None:
        """Compute requests together, and each on its own where they fail together, so that one does not spoil the others."""
        try:
            transcriptions, took = await self._engine.run(self._compute, [each.samples for each in some])
        except Exception as error:  # noqa: BLE001 # one bad request must not end the service
            if len(some) > 1:
                for each in some:
                    await self._answer([each])
            elif not some[0].answer.done():
                some[0].answer.set_exception(error)
            return
        self._metrics.busy.inc(took)
        self._metrics.batch.observe(len(some))
        for each, answer in zip(some, transcriptions, strict=True):
            self._metrics.audio.inc(len(each.samples) / self.recognizer.sample_rate)
            if not each.answer.done():
                each.answer.set_result(answer)

    def _compute(self, audios: Sequence[Audio]) -> list[Transcription]:
        """Transcribe short recordings together, and long ones in windows."""
        recognizer = self.recognizer
        transcriptions: dict[int, Transcription] = {}
        short = [index for index, samples in enumerate(audios) if len(samples) <= _WINDOW * recognizer.sample_rate]
        if not recognizer.task.timed:
            short = list(range(len(audios)))
        order = sorted(short, key=lambda index: len(audios[index]))  # little padding
        transcriptions.update(zip(order, recognizer.transcribe_all([audios[index] for index in order]), strict=True))
        for index in set(range(len(audios))) - set(short):
            transcriptions[index] = joined(list(transcribe_long(recognizer, iter([audios[index]]))))
        return [transcriptions[index] for index in range(len(audios))]
