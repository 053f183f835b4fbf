"""POST /v1/audio/transcriptions and GET /v1/models as clients of OpenAI's API send them (its reference, "Audio" and "Models").

Of its fields, `language`, `prompt`, `temperature`, `stream` and `chunking_strategy` change nothing here: a model has the languages that it
was trained on, and decodes without chance.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from speechtrain.inference.formats import FORMATS, lines
from speechtrain.inference.service.refusals import Refusal
from speechtrain.inference.service.schemas import Model, Models

if TYPE_CHECKING:
    from speechtrain.decode.align import Word
    from speechtrain.inference.service.service import Heard, Service
    from speechtrain.inference.service.uploads import Upload

RESPONSE_FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
GRANULARITIES = ("word", "segment")
_MEDIA = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}
_LEAST = 1e-10  # of a probability, whose logarithm is finite


class OpenAIRoutes:
    """Answers in the form of OpenAI's API.

    Args:
        service: has the models.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def transcriptions(self, request: Request) -> Response:
        """Transcribe a file of audio.

        The fields `language`, `prompt`, `temperature`, `stream` and `chunking_strategy` are accepted, and change nothing.
        """
        heard = await self._service.hear(request, lambda upload: _check(upload, request.query_params.get("model")))
        kind = heard.upload.value("response_format") or "json"
        if kind in _MEDIA:
            written = "".join(FORMATS[kind]("", [heard.transcription]))
            return PlainTextResponse(written, media_type=_MEDIA[kind])
        if kind == "json":
            return JSONResponse({"text": heard.transcription.text})
        return JSONResponse(verbose(heard, _granularities(heard.upload) or {"segment"}))

    async def models(self) -> Response:
        """List the models that are served."""
        models = [Model(id=each.name, created=each.loaded) for each in self._service.models.values()]
        return JSONResponse(Models(data=models).model_dump())

    async def one_model(self, model: str) -> Response:
        """Describe one of the models that are served."""
        served = self._service.model(model)
        return JSONResponse(Model(id=served.name, created=served.loaded).model_dump())


def _check(upload: Upload, model: str | None) -> None:
    """Check the fields of a request, whose query may name a model.

    Raises:
        Refusal: one is missing, or has a value that is not known here.
    """
    if not (upload.value("model") or model):
        raise Refusal(400, "the field 'model' is missing", param="model")
    kind = upload.value("response_format") or "json"
    if kind not in RESPONSE_FORMATS:
        reason = f"response_format is '{kind[:100]}'; {', '.join(RESPONSE_FORMATS)} can be had"
        raise Refusal(400, reason, param="response_format")
    if unknown := _granularities(upload).difference(GRANULARITIES):
        reason = f"timestamp_granularities has '{min(unknown)[:100]}'; {' and '.join(GRANULARITIES)} can be had"
        raise Refusal(400, reason, param="timestamp_granularities")


def _granularities(upload: Upload) -> set[str]:
    return {each for name in ("timestamp_granularities[]", "timestamp_granularities") for each in upload.fields.get(name, ())}


def verbose(heard: Heard, granularities: set[str]) -> dict[str, Any]:
    """Return a transcription as `verbose_json` has it, with `words`, `segments` or both.

    Values that only Whisper has are neutral: no `tokens`, `seek` and `no_speech_prob` are 0, and `temperature` is that of decoding here.
    """
    transcription = heard.transcription
    answer: dict[str, Any] = {
        "task": "transcribe",
        "language": heard.upload.value("language") or "",
        "duration": round(heard.seconds, 3),
        "text": transcription.text,
    }
    if "segment" in granularities:
        segments = list(lines(transcription.words))
        answer["segments"] = [_segment(number, words) for number, words in enumerate(segments)]
    if "word" in granularities:
        answer["words"] = [{"word": w.text, "start": round(w.start, 3), "end": round(w.end, 3)} for w in transcription.words]
    return answer


def _segment(number: int, words: Sequence[Word]) -> dict[str, Any]:
    text = " ".join(word.text for word in words)
    content = text.encode()
    return {
        "id": number,
        "seek": 0,
        "start": round(words[0].start, 3),
        "end": round(words[-1].end, 3),
        "text": text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": round(sum(math.log(max(word.confidence, _LEAST)) for word in words) / len(words), 4),
        "compression_ratio": round(len(content) / len(zlib.compress(content)), 4),
        "no_speech_prob": 0.0,
    }
