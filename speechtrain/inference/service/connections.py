"""The limits of the service that concern a connection: how many there are, and how long each may take to say and to read something.

uvicorn waits for a client as long as the client likes. `LimitedProtocol` closes a connection whose headers do not
arrive, whose answers are not read, or that is one too many. How long a body may take is known to
`uploads.py`, which reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope
    from websockets.frames import Frame

    from speechtrain.inference.service.service import Service

_BUSY = b'{"error":"too many connections; try again"}'
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_BUSY), _BUSY)
)
_SENT_AWAY = 1.0  # s that a client has to read that there are too many, or that a stream is closed
_HANDSHAKE = 10.0  # s that a client of TLS has to say who it is
_MOST_UNREAD = 1 << 20  # bytes that wait for the client of a WebSocket to read them
_MOST_PARTS = 1024  # of a message of a WebSocket
LIVE = "/stream"
"""Path of the only WebSocket."""
_AT_THE_END = 1.0  # s that a slow client has when the server ends


class _PatientTransport(asyncio.Transport):
    """Closes a connection only when its client has stopped sending: a socket that closes with bytes unread takes its answer back.

    Args:
        transport: the transport of the event loop.
        unread: whether the client may still be sending.
        linger: what is to be called where it is.
    """

    def __init__(self, transport: asyncio.Transport, unread: Callable[[], bool], linger: Callable[[], None]) -> None:
        super().__init__()
        self.inner = transport
        self._unread = unread
        self._linger = linger
        self._lingers = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.inner.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._lingers or self.inner.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if not self._unread():
            self.inner.close()
            return
        if not self.inner.can_write_eof():  # TLS says that nothing more comes when it closes
            self.inner.close()
            return
        try:
            self.inner.write_eof()
        except OSError:  # the client has left
            self.inner.abort()
            return
        self._lingers = True
        self.inner.resume_reading()
        self._linger()

    def abort(self) -> None:
        self.inner.abort()

    def pause_reading(self) -> None:
        if not self._lingers:
            self.inner.pause_reading()

    def resume_reading(self) -> None:
        self.inner.resume_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._lingers:
            self.inner.write(data)

    def get_write_buffer_size(self) -> int:
        return self.inner.get_write_buffer_size()


class _Unread:
    """Knows for how long what was sent on a connection has not been read."""

    def __init__(self) -> None:
        self._since: float | None = None

    def seconds(self, transport: asyncio.WriteTransport, now: float) -> float:
        """Return for how many seconds there has been something to read each time this was called; 0 if there is nothing now."""
        if not transport.get_write_buffer_size():
            self._since = None
        elif self._since is None:
            self._since = now
        return 0.0 if self._since is None else now - self._since


class LimitedProtocol(H11Protocol):
    """Handles one connection; a request is asked for until its headers are there, then the application has it until it has answered.

    Attributes:
        service: has the limits, and counts what is refused before the application hears of it.
    """

    service: ClassVar[Service]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._answers = self.app
        self.app = self._answer
        self._in_application = 0
        self._asked_since: float | None = None
        self._unread = _Unread()
        self._ends_by: float | None = None
        self._too_many = False
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to ask for a request, unless there are too many connections."""
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(_PatientTransport(transport, self._client_sends, self._linger))
        self._asked_since = self.loop.time()
        self._look()
        if len(self.connections) <= self.service.cfg.connections:
            return
        self.service.count("503")
        self._too_many = True
        if len(self.connections) > 2 * self.service.cfg.connections:
            self.transport.abort()
            return
        self.transport.write(_TOO_MANY)
        self.transport.close()
        self._ends_by = self.loop.time() + _SENT_AWAY

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking at the times of the connection."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if self.transport.is_closing():  # what comes is thrown away
            return
        if not self._in_application and self._asked_since is None:
            self._asked_since = self.loop.time()
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless the application has begun to answer what stood before it."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # its text is more than the answer to HEAD may have
            self.transport.abort()
        if self.cycle is not None and not self.cycle.response_complete:  # the application is told that there is nobody to answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            self.service.count("400")

    def shutdown(self) -> None:
        """Let the application answer what it has, and give a client that is slow no more than a moment."""
        self.loop.call_later(_AT_THE_END, self._abort_if_slow)
        if self._too_many or self.conn.our_state is h11.ERROR:
            self.transport.abort()
        else:
            super().shutdown()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over to the protocol of WebSockets, which has limits of its own."""
        if self._watch is not None:
            self._watch.cancel()
        assert isinstance(self.transport, _PatientTransport)
        self.transport = self.transport.inner
        super().handle_websocket_upgrade(event)

    def _should_upgrade(self) -> bool:
        """Return whether a request begins a WebSocket; where there is none, the words are left out of account."""
        event = self.scope
        return event["method"] == "GET" and event["path"] == LIVE and self._get_upgrade() == b"websocket"

    async def _answer(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self._in_application += 1
        self._asked_since = None
        try:
            await self._answers(scope, receive, send)
        finally:
            self._in_application -= 1

    def _client_sends(self) -> bool:
        """Return whether the client has begun a request and not ended it, or has sent what cannot be read."""
        return self._too_many or self._asked_since is not None or self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _linger(self) -> None:
        self._ends_by = self.loop.time() + self.service.cfg.header_seconds

    def _abort_if_slow(self) -> None:
        if not self._in_application or self.cycle.more_body or self.transport.get_write_buffer_size():
            self.transport.abort()

    def _look(self) -> None:
        """Close the connection if one of its times is over, and look again soon."""
        now = self.loop.time()
        if self._unread.seconds(self.transport, now) > self.service.cfg.write_seconds:
            self.transport.abort()
        elif self._ends_by is not None:
            if now > self._ends_by:
                self.transport.abort()
        elif self._asked_since is not None and now > self._asked_since + self.service.cfg.header_seconds:
            self.service.count("408")
            self.transport.abort()
        self._watch = self.loop.call_later(min(1.0, self.service.cfg.header_seconds / 4, self.service.cfg.write_seconds / 4), self._look)


class LimitedWebSocket(WebSocketsSansIOProtocol):
    """Handles one WebSocket; ends it when its client reads nothing, or sends what only fills memory.

    Attributes:
        service: has the limits.
    """

    service: ClassVar[Service]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = _SENT_AWAY
        self._unread = _Unread()
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to look whether what is sent is read."""
        super().connection_made(transport)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking at what the client reads."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read frames, unless answers to them, such as pongs, are not read."""
        if self.transport.get_write_buffer_size() > _MOST_UNREAD:
            self.transport.abort()
        elif not self.transport.is_closing():
            super().data_received(data)

    def handle_cont(self, event: Frame) -> None:
        """Take a part of a message; the library limits the bytes of a message, and not in how many parts they come."""
        if len(self.frames) >= _MOST_PARTS:
            self.transport.abort()
        else:
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Hand a message on; a text has to be UTF-8, and the log has no trace of one that is none."""
        try:
            if self.curr_msg_data_type == "text":
                b"".join(self.frames).decode()
        except UnicodeDecodeError:
            self.transport.abort()
        else:
            super().send_receive_event_to_app()

    def shutdown(self) -> None:
        """End the stream; a client that reads nothing has a moment."""
        self.loop.call_later(_AT_THE_END, self.transport.abort)
        super().shutdown()

    def _look(self) -> None:
        if self._unread.seconds(self.transport, self.loop.time()) > self.service.cfg.write_seconds:
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(min(1.0, self.service.cfg.write_seconds / 4), self._look)


def limited_protocol(service: Service) -> type[LimitedProtocol]:
    """Return the protocol of the connections of a service, for uvicorn's `http`."""
    return type("LimitedProtocol", (LimitedProtocol,), {"service": service})


def limited_websocket(service: Service) -> type[LimitedWebSocket]:
    """Return the protocol of the WebSockets of a service, for uvicorn's `ws`."""
    return type("LimitedWebSocket", (LimitedWebSocket,), {"service": service})


def loop_for_tls() -> asyncio.AbstractEventLoop:
    """Return an event loop that waits ten seconds for a TLS handshake, for uvicorn's `loop`; asyncio waits a minute."""
    return _LoopWithTls()


class _LoopWithTls(asyncio.SelectorEventLoop):
    async def create_server(self, *args: Any, **kwargs: Any) -> asyncio.Server:
        if kwargs.get("ssl") is not None:
            kwargs.setdefault("ssl_handshake_timeout", _HANDSHAKE)
        return await super().create_server(*args, **kwargs)
