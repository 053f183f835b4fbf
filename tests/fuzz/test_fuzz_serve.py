"""Requests and addresses of all kinds: each is answered with a status that fits, and the service goes on; no secret gets out."""

from __future__ import annotations

import io
import json
import logging
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
from fuzz.fuzzing import generators
from serving import wait_for
from websockets.frames import Frame, Opcode

import speechtrain
from speechtrain import addresses
from speechtrain.addresses import keep, masked, masked_values, whole
from speechtrain.config.compose import compose_command
from speechtrain.config.schemas.commands import ServeConfig
from speechtrain.inference.service.service import Service
from speechtrain.serve import server_of

_KINDS = {"WAV": ("PCM_16", "PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "ALAW"), "FLAC": ("PCM_16",), "OGG": ("VORBIS", "OPUS")}
_KINDS |= {"MP3": ("MPEG_LAYER_III",), "AIFF": ("PCM_16",), "AU": ("PCM_16", "FLOAT"), "RAW": ("PCM_16",)}


@pytest.fixture(scope="module")
def service(trained: Path) -> Iterator[tuple[Service, tuple[str, int]]]:
    keys = ["max_megabytes=0.3", "max_seconds=4", "header_seconds=1", "body_seconds=1", "min_rate=1000000", "write_seconds=1"]
    service = Service({"tones": speechtrain.load(str(trained))}, compose_command(ServeConfig, keys))
    server, listening = server_of(service), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield service, listening.getsockname()
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def samples(draw: random.Random) -> np.ndarray:
    shape = (draw.choice([0, 1, 2, 80, 4000, 30_000, 50_000]), draw.choice([1, 1, 1, 2, 5]))
    values = np.random.default_rng(draw.getrandbits(32)).normal(0, draw.choice([0, 0.1, 1, 30, 1e5, 1e30]), shape)
    if draw.random() < 0.2 and values.size:
        values.flat[draw.randrange(values.size)] = draw.choice([np.nan, np.inf, -np.inf, 3e38, 1e300, -1e9])
    return values


def audio(draw: random.Random) -> bytes:
    kind = draw.choice(list(_KINDS))
    buffer = io.BytesIO()
    try:
        rate = draw.choice([8000, 8000, 16000, 48000, 11025, 44101, 1, 2_000_000])
        values = samples(draw)
        if kind in ("OGG", "MP3"):  # whose encoders crash at anything else
            values = np.clip(np.nan_to_num(values), -1, 1)
        soundfile.write(buffer, values, rate, format=kind, subtype=draw.choice(_KINDS[kind]))
    except (soundfile.SoundFileError, ValueError, TypeError, OverflowError, AssertionError):  # what its encoders refuse
        return b"RIFF" + draw.randbytes(60)
    content = bytearray(buffer.getvalue())
    for _ in range(draw.choice([0, 0, 0, 1, 5, 50])):
        if content:
            content[draw.randrange(min(len(content), draw.choice([60, 10**9])))] = draw.getrandbits(8)
    if draw.random() < 0.2:
        content = content[: draw.randrange(len(content) + 1)]
    if draw.random() < 0.1 and len(content) > 28:
        content[24:28] = struct.pack("<I", draw.choice([0, 1, 44101, 2**31, 2**32 - 1]))
    return bytes(content) * draw.choice([1, 1, 1, 1, 2])


def body(draw: random.Random) -> bytes:
    if draw.random() < 0.6:
        return audio(draw)
    others = [draw.randbytes(draw.choice([0, 1, 44, 5000])), json.dumps({"a": [draw.random()]}).encode(), b"0" * 400_000]
    return draw.choice([*others, bytes(draw.choice([1, 60_000])), "é\u2028\ud800".encode("utf-8", "surrogatepass")])


def request(draw: random.Random, content: bytes) -> bytes:
    method = draw.choice(["POST"] * 12 + ["GET", "PUT", "HEAD", "DELETE", "OPTIONS", "post", "\xe9", "P OST", ""])
    path = draw.choice(
        ["/transcribe"] * 10 + ["/health", "/metrics", "/", "//", "/../x", "/%00", "/transcribe/", "*", "x", "/" + "a" * 20_000]
    )
    path += draw.choice(["", "?words=true", "?words=%ff&words=", "?" + "a&" * 100, "?words=1;x=%"])
    lines = [f"{method} {path} {draw.choice(['HTTP/1.1'] * 9 + ['HTTP/1.0', 'HTTP/2', 'HTTP/x', ''])}"]
    lines += draw.choice([["Host: here"]] * 8 + [[], ["Host: a", "Host: b"]])
    sizes = ["0", "-1", "+3", "1e3", "", "9" * 30, str(len(content) + 5), f"{len(content)}, {len(content)}", "0x10", "\u0663"]
    chunked = draw.random() < 0.2
    if chunked:
        lines.append(f"Transfer-Encoding: {draw.choice(['chunked'] * 6 + ['gzip', 'chunked, gzip', 'Chunked'])}")
    if not chunked or draw.random() < 0.1:
        lines.append(f"Content-Length: {len(content) if draw.random() < 0.8 else draw.choice(sizes)}")
    more = ["Expect: 100-continue", "Connection: close", "Connection: upgrade", "Upgrade: websocket", "Content-Encoding: gzip", "A" * 9000]
    more += ["X-Forwarded-For: \xff", "Content-Type: multipart/form-data", "Range: bytes=0-1", " folded", "X:" + "y" * 30_000, "\0: 1"]
    lines += draw.sample(more, draw.choice([0, 0, 0, 1, 2]))
    head = "\r\n".join([*lines, "", ""]).encode("utf-8") if draw.random() < 0.95 else "\n".join([*lines, "", ""]).encode("utf-8")
    if not chunked:
        return head + content
    parts, rest = b"", content
    while rest:
        size = draw.choice([1, 7, 1000, 100_000]) if len(rest) < 5000 else 100_000
        parts += b"%x%s\r\n%s\r\n" % (len(rest[:size]), draw.choice([b"", b"", b";x=y"]), rest[:size])
        rest = rest[size:]
    return head + parts + draw.choice([b"0\r\n\r\n"] * 8 + [b"", b"zz\r\n", b"0\r\nTrailer: x\r\n\r\n", b"-1\r\n\r\n"])


def statuses(address: tuple[str, int], sent: bytes, *, last: bool = True) -> list[int]:
    """Send bytes, say that they are the last unless something in them does, and return the statuses of all answers."""
    with socket.create_connection(address, 60) as connection:
        try:
            connection.sendall(sent)
            if last:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        got = b""
        try:
            while data := connection.recv(1 << 16):
                got += data
        except ConnectionError:
            pass
    return [int(each) for each in re.findall(rb"HTTP/1\.1 (\d{3})", got)]


def test_any_request_has_an_answer_that_fits_and_the_service_goes_on(
    service: tuple[Service, tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    served, address = service
    good = io.BytesIO()
    soundfile.write(good, 0.1 * np.sin(np.arange(4000) * 0.3), 8000, format="WAV")
    head = f"POST /transcribe HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(good.getvalue())}\r\n\r\n".encode()
    for number, draw in generators("serve", 250):
        sent = request(draw, body(draw))
        found = statuses(address, sent)
        assert set(found) <= {100, 200, 307, 400, 404, 405, 408, 413}, f"{number}: {found} to {sent[:300]!r}"
        if number % 25 == 0:
            with socket.create_connection(address, 60) as connection:
                connection.sendall(head + good.getvalue())
                assert connection.makefile("rb").readline().split()[1] == b"200", f"{number}: after {sent[:300]!r}"
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    nothing_is_held(served)


def nothing_is_held(served: Service) -> None:
    deadline = time.monotonic() + 20  # the last client may have left before the service has noticed
    while served.registry.get_sample_value("speechtrain_held_bytes") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.registry.get_sample_value("speechtrain_held_bytes") == 0


def form(draw: random.Random, recording: bytes) -> bytes:
    """A request with a form, some of which is damaged, to a route that reads forms or to one that does not."""
    values = [("model", b"tones"), ("words", b"1"), ("temperature", b"nan"), ("prompt", draw.randbytes(99)), ("", b"")]
    values += [("response_format", draw.choice([b"json", b"srt", b"verbose_json", b"\xff"])), ("timestamp_granularities[]", b"word")]
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value for name, value in draw.sample(values, 4)]
    more = draw.choice([b"", b"Content-Type: audio/wav\r\n", b"Content-Transfer-Encoding: base64\r\n", b"X: " + b"y" * 5000 + b"\r\n"])
    names = draw.choice([b"file"] * 5 + [b"f"]), draw.choice([b"a.wav", b"../../x", b"\xff\x00", b""])
    parts.insert(
        draw.randrange(5), b'--b\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n%s\r\n' % (*names, more) + recording
    )
    end = draw.choice([b"\r\n--b--\r\n"] * 6 + [b"", b"\r\n--b", b"\r\n--b--" + bytes(5000)])
    content = bytearray(b"\r\n".join(parts) + end)
    for _ in range(draw.choice([0, 0, 0, 1, 20])):
        content[draw.randrange(len(content))] = draw.getrandbits(8)
    path = draw.choice(
        ["/transcribe", "/v1/audio/transcriptions"] * 5 + ["/v1/models", "/v1/models/%2e%2e%2fx", "/docs", "/static/../service.py"]
    )
    path += draw.choice(["", "?words=true", "?model=tones", "?model=%00"])
    boundary = draw.choice(["b"] * 9 + ["", "c", "b" * 300, '"', "b; boundary=c"])
    lines = [f"{draw.choice(['POST'] * 9 + ['GET'])} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, f"Content-Type: multipart/form-data; boundary={boundary}", "", ""]).encode() + content


def test_any_form_has_an_answer_that_fits(service: tuple[Service, tuple[str, int]], caplog: pytest.LogCaptureFixture) -> None:
    served, address = service
    recording = io.BytesIO()
    soundfile.write(recording, 0.1 * np.sin(np.arange(4000) * 0.3), 8000, format="WAV")
    for number, draw in generators("forms", 100):
        sent = form(draw, recording.getvalue())
        found = statuses(address, sent, last=False)
        assert set(found) <= {200, 400, 404, 405, 408, 413}, f"{number}: {found} to {sent[:300]!r}"
        assert found, number
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    nothing_is_held(served)


def frames(draw: random.Random) -> bytes:
    """What a client of a WebSocket sends: messages that make sense, and some that make none."""
    rate = draw.choice([8000, 16000, 44101, 1000, 768_000, 0, -1, 1e9, "8000", None])
    start = {"rate": rate, "encoding": draw.choice(["pcm16"] * 4 + ["float32", "x"])}
    start |= draw.choice([{}, {}, {"model": "tones"}, {"model": "\0"}, {"partials": "x"}, {"token": "x"}, {"a": [[[]]]}])
    messages = [Frame(Opcode.TEXT, json.dumps(start).encode())] if draw.random() < 0.9 else []
    for _ in range(draw.choice([0, 1, 5, 40])):
        size = draw.choice([0, 1, 2, 3, 1600, 1600, 20_000, 300_000])
        loud = np.random.default_rng(size).normal(0, 3000, size // 2).astype("<i2").tobytes()
        data = draw.choice([bytes(size), draw.randbytes(size), loud])
        kind = draw.choice([Opcode.BINARY] * 9 + [Opcode.TEXT, Opcode.CONT, Opcode.PING, Opcode.PONG])
        control = kind in (Opcode.PING, Opcode.PONG)
        messages.append(Frame(kind, data[:125] if control else data, control or draw.random() < 0.95))
    ends = [[Frame(Opcode.TEXT, b'{"type": "end"}')]] * 5 + [[], [Frame(Opcode.CLOSE, b"\x03\xe8")], [Frame(Opcode.CLOSE, b"x")]]
    content = bytearray(b"".join(each.serialize(mask=draw.random() < 0.99) for each in messages + draw.choice(ends)))
    for _ in range(draw.choice([0, 0, 0, 0, 1, 5])):
        if content:
            content[draw.randrange(len(content))] = draw.getrandbits(8)
    return bytes(content)


def test_any_stream_comes_to_an_end_and_the_service_goes_on(
    service: tuple[Service, tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    served, address = service
    lines = ["GET /stream HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    head = "\r\n".join([*lines, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "", ""]).encode()
    for number, draw in generators("streams", 40):
        with socket.create_connection(address, 60) as connection:
            connection.sendall(head)
            assert connection.recv(1000).startswith(b"HTTP/1.1 101 "), number
            sent = frames(draw)
            try:
                connection.sendall(sent)
                if draw.random() < 0.3:
                    while connection.recv(1 << 16):
                        pass
            except OSError:  # the service ended it before it had all of this
                pass
    wait_for(lambda: served.live.open == 0)
    nothing_is_held(served)
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def secret(draw: random.Random) -> str:
    letters = "abcXYZ0189" + draw.choice(["", "-_.", "@/:", "?#&=%", "'\"` <>", "äß\u0663"])
    return "S" + "".join(draw.choice(letters) for _ in range(draw.choice([5, 8, 20]))) + "Z9"


def address_of(draw: random.Random, hidden: str) -> str:
    written = hidden if draw.random() < 0.5 else quote(hidden, safe="")
    scheme = draw.choice(["postgresql", "postgresql+psycopg", "mysql+pymysql", "redis", "http", "https", "mongodb", "amqp", "ftp"])
    host = draw.choice(["h", "db.example.org", "127.0.0.1:80", "[::1]:5432", "h:1"])
    name = draw.choice(["me", "", "me%40x", "a.b"])
    place = draw.choice(["", "/", "/db", "/a/b?sslmode=x", "?x=1"])
    if draw.random() < 0.7:
        return f"{scheme}://{name}:{written}@{host}{place}"
    key = draw.choice(["password", "sslpassword", "token", "access_token", "api_key", "PASSWORD", "client_secret"])
    return f"{scheme}://{host}/db?x=1&{key}={quote(hidden, safe='')}{draw.choice(['', '&y=2'])}"


def test_no_secret_of_an_address_gets_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, draw in generators("addresses", 1500):
        monkeypatch.setattr(addresses, "_known", set())
        hidden = secret(draw)
        given = address_of(draw, hidden)
        config = {"tracking": {"mlflow": {"tracking_uri": given}}, "typed": [f"a.b={given}", 3, None]}
        outputs = [json.dumps(masked_values(config), ensure_ascii=False), masked_values(given)]
        outputs += [masked(text) for text in (given, f"no {given}: (Connection refused)", f"x={given} y=2", repr(given), quote(given))]
        for output in outputs:
            assert hidden not in output, f"{number}: {output!r} of {given!r}"
            assert quote(hidden, safe="") not in output, f"{number}: {output!r} of {given!r}"
        assert masked_values(masked_values(given)) == masked_values(given)
        if number % 25 == 0:
            keep(config)
            assert whole(masked_values(given)) == given
    assert addresses._store_file().stat().st_mode & 0o077 == 0
