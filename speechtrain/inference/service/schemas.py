"""What the service sends and receives as JSON; the page at /docs is made of these."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from speechtrain.config.schemas.node import HIGHEST_RATE

LOWEST_RATE = 1000


class Word(BaseModel):
    """Tells when a word was said, and how sure that is."""

    text: str
    start: float = Field(description="s from the beginning of the recording")
    end: float = Field(description="s from the beginning of the recording")
    confidence: float = Field(description="probability that the word is right, 0 to 1")


class Transcript(BaseModel):
    """What was said in a recording."""

    text: str
    confidence: float = Field(description="expected share of right words, 0 to 1")
    seconds: float = Field(description="duration of the recording")
    latency: float = Field(description="s from the last byte of the request to the answer")
    words: list[Word] | None = Field(None, description="with `words=true`")


class Health(BaseModel):
    """Says what is served, and how it goes."""

    status: Literal["ok"]
    model: str = Field(description="class of the first model")
    backend: str
    sample_rate: int = Field(description="Hz; other audio is resampled")
    models: list[str] = Field(description="names to ask for")
    uptime: float = Field(description="s")
    waiting: int = Field(description="requests that wait")
    streams: int = Field(description="live streams that are open")
    real_time_factor: float | None = Field(description="time of the model over time of audio")


class Refused(BaseModel):
    """Why a request was refused."""

    error: str


class OpenAIError(BaseModel):
    """Why a request was refused, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIRefused(BaseModel):
    """Why a request was refused, as OpenAI's clients read it."""

    error: OpenAIError


class Model(BaseModel):
    """Describes a served model as OpenAI's clients expect it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when it was loaded, s since 1970")
    owned_by: Literal["speechtrain"] = "speechtrain"


class Models(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class Text(BaseModel):
    """Answers a request with `response_format=json`."""

    text: str


class StreamStart(BaseModel):
    """The first message of a live stream."""

    model_config = ConfigDict(extra="forbid")

    rate: Annotated[int, Field(ge=LOWEST_RATE, le=HIGHEST_RATE, description="Hz")]
    encoding: Literal["pcm16", "float32"] = Field("pcm16", description="of the samples in binary messages, little-endian, one channel")
    model: str | None = Field(None, description="name of a model; without one, the first")
    partials: bool = Field(True, description="whether texts that may still change are sent")
    token: str | None = Field(None, description="for browsers, which can send no Authorization header")


class StreamEnd(BaseModel):
    """The last message of a live stream; what is left is recognised and sent."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["end"]
