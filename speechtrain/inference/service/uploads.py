"""What a request sends: its body as audio, or a form with a file of audio and further fields, within the limits of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from speechtrain.inference.service.refusals import Refusal

if TYPE_CHECKING:
    from speechtrain.config.schemas.commands import ServeConfig
    from speechtrain.inference.service.memory import Share

_MOST_FIELDS = 64
_MOST_IN_FIELD = 64 << 10  # bytes


@dataclass
class Upload:
    """What a request has sent.

    Attributes:
        audio: content of a file of audio; empty if there is none.
        fields: values of the fields of a form, by name.
        is_form: whether it is a form.
    """

    audio: bytes | bytearray = b""
    fields: dict[str, list[str]] = field(default_factory=dict)
    is_form: bool = False

    def value(self, name: str) -> str | None:
        """Return the last value of a field; None: the form has no such field."""
        return self.fields[name][-1] if name in self.fields else None


class _Form(MultiPartParser):
    spool_max_size = 1 << 62  # bodies are counted as memory, and nothing is written to a disk
    ended = False

    def on_end(self) -> None:
        self.ended = True


def is_form(request: Request) -> bool:
    """Return whether a request says that its body is a form with files."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"


async def receive(request: Request, cfg: ServeConfig, share: Share) -> Upload:
    """Read what a request sends.

    Args:
        request: the request.
        cfg: has the limits.
        share: counts the bytes.

    Raises:
        Refusal: it is too large, comes too slowly, is no form though it says so, or all memory is taken.
    """
    if is_form(request):
        return await _form(request, cfg, share)
    body = bytearray()
    async for part in _parts(request, cfg, share):
        body += part
    return Upload(body)


async def _parts(request: Request, cfg: ServeConfig, share: Share) -> AsyncGenerator[bytes, None]:
    """Yield the body of a request in parts.

    Raises:
        Refusal: it is too large, comes too slowly, or all memory is taken.
    """
    most = int(cfg.max_megabytes * 1e6)
    too_large = Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request may have {most / 1e6:g} MB; this one has more")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > most:
        raise too_large
    begin = asyncio.get_running_loop().time()
    stream = request.stream()
    while True:
        received = share.held
        try:
            async with asyncio.timeout_at(begin + cfg.body_seconds + min(received / cfg.min_rate, cfg.max_seconds)):
                part = await anext(stream, None)
        except TimeoutError:
            reason = f"{received} bytes of the request have come; send at least {cfg.min_rate:g} in a second"
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, reason) from None
        if part is None:
            return
        if received + len(part) > most:
            raise too_large
        share.hold(received + len(part))
        yield part


async def _form(request: Request, cfg: ServeConfig, share: Share) -> Upload:
    parser = _Form(request.headers, _parts(request, cfg, share), max_files=1, max_fields=_MOST_FIELDS, max_part_size=_MOST_IN_FIELD)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"the form cannot be read: {error.message.rstrip('.')}") from None
    if not parser.ended:
        raise Refusal(HTTPStatus.BAD_REQUEST, "the form cannot be read: its last boundary is missing")
    upload = Upload(is_form=True)
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "file":
                raise Refusal(HTTPStatus.BAD_REQUEST, f"the file is in the field '{name[:100]}'; send it as 'file'", param="file")
            upload.audio = value.file.read()
            value.file.close()
        else:
            upload.fields.setdefault(name, []).append(value)
    if not upload.audio and "file" in upload.fields:
        reason = "the field 'file' has no file name, so that it is text; send a file (curl -F file=@a.wav)"
        raise Refusal(HTTPStatus.BAD_REQUEST, reason, param="file")
    return upload
