"""Live signals over real WebSockets: what comes back does not depend on packets, and no client costs more than it may."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import websockets
from conftest import SHARED_DATA
from serving import Served, serving, wait_for
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from speechtrain import compose
from speechtrain.config.build import build
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.data.audio import LiveSamples
from speechtrain.data.text.base import build_tokenizer
from speechtrain.errors import DataError
from speechtrain.inference.long_audio import LongTranscriber
from speechtrain.inference.recognizer import Recognizer
from speechtrain.inference.service import connections
from speechtrain.inference.service.live import MOST_IN_MESSAGE
from speechtrain.inference.streaming import LiveTranscriber
from speechtrain.tasks.build import build_task

LSTM = ("model=lstm", "model.hidden_size=32")
CONFORMER = ("model=conformer", "model.chunk_frames=4", "model.n_layers=1", "model.d_model=32")
OFFLINE = ("model=conformer", "model.n_layers=1", "model.d_model=32")


def untrained(*options: str) -> Recognizer:
    """A model with weights by chance, which hears letters in everything; what is compared is what it says."""
    plain = ["features.normalize=none", "features.top_db=null", "data=synthetic", "features=logmel_8k", "tracking=[]", "backend.threads=1"]
    cfg = ExperimentConfig.of(compose([*plain, *options]))
    features, backend = build("features", cfg.features), build("backend", cfg.backend)
    tokenizer = build_tokenizer(cfg.tokenizer, vocabulary=["<blank>", " ", *"abcdefgh"])
    task = build_task(cfg, tokenizer=tokenizer, input_size=features.size)
    model = backend.build(cfg.model, task, input_size=features.size, seed=1)
    with torch.no_grad():  # it begins with zeros
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(3)))
    return Recognizer(backend, model, task, features, tokenizer, cfg)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Digits with pauses of a second at 8 kHz, or noise that comes and goes where no speech is beside the checkout."""
    quiet = np.zeros(8000, np.float32)
    names = [SHARED_DATA / "fsdd_strings" / "audio" / f"test_000{number}.flac" for number in range(2)]
    if names[0].is_file():
        said = [soundfile.read(name, dtype="float32")[0] for name in names]
    else:
        draw = np.random.default_rng(0)
        said = [(draw.normal(size=(40, 500)) * draw.uniform(0.001, 0.3, (40, 1))).ravel().astype(np.float32) for _ in range(2)]
    return np.concatenate([part for each in said for part in (each, quiet)]).clip(-1, 1)


@pytest.fixture(scope="module")
def models() -> dict[str, Recognizer]:
    return {"live": untrained(*CONFORMER), "offline": untrained(*OFFLINE)}


@pytest.fixture
def serve(models: dict[str, Recognizer]) -> Iterator[Callable[..., Served]]:
    with serving(models) as start:
        yield start


def client(served: Served, **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{served.address[1]}/stream", close_timeout=60, **options)


def pcm16(samples: np.ndarray) -> bytes:
    return (samples * 32767).round().astype("<i2").tobytes()


def until_closed(connection: ClientConnection) -> list[dict[str, Any]]:
    """All messages up to the end of a connection; its close code becomes one more."""
    messages = []
    try:
        while True:
            messages.append(json.loads(connection.recv(timeout=60)))
    except websockets.ConnectionClosed as closed:
        messages.append({"type": "closed", "code": closed.rcvd.code if closed.rcvd else None})
    return messages


def streamed(served: Served, packets: Sequence[bytes], **start: Any) -> list[dict[str, Any]]:
    with client(served) as connection:
        connection.send(json.dumps({"rate": 8000, **start}))
        for packet in packets:
            connection.send(packet)
        connection.send('{"type": "end"}')
        return until_closed(connection)


def divided(data: bytes, draw: random.Random, sizes: Sequence[int]) -> list[bytes]:
    packets = []
    while data:
        size = draw.choice(sizes)
        packets.append(data[:size])
        data = data[size:]
    return packets


@pytest.mark.parametrize("options", [LSTM, CONFORMER, (*CONFORMER, "model.left_chunks=2"), OFFLINE])
def test_how_a_signal_is_divided_changes_nothing_and_its_text_is_that_of_the_whole(options: tuple[str, ...], speech: np.ndarray) -> None:
    recognizer = untrained(*options)

    def transcribed(blocks: Sequence[np.ndarray]) -> tuple[list[Any], str]:
        transcriber = LongTranscriber(recognizer) if options is OFFLINE else LiveTranscriber(recognizer)
        texts = [text for block in blocks for text in transcriber.push(block)]
        texts += transcriber.finish()
        return texts, transcriber.text

    texts, whole = transcribed([speech])
    assert whole == recognizer.transcribe(speech).text != ""
    draw = random.Random(0)
    for sizes in ([len(speech) // 2], [1, 50, 333, 4000]):
        bounds = np.cumsum([draw.choice(sizes) for _ in range(len(speech) // min(sizes) // 20)])
        assert transcribed(np.split(speech, bounds[bounds < len(speech)])) == (texts, whole)


@pytest.mark.parametrize("encoding", ["pcm16", "float32"])
def test_bytes_divided_in_any_way_at_any_rate_are_the_samples_of_the_whole(encoding: str, speech: np.ndarray) -> None:
    data = pcm16(speech) if encoding == "pcm16" else speech.tobytes()
    for native in (8000, 16000, 44101):
        whole = LiveSamples(native, 8000, encoding)
        expected = np.concatenate([whole.push(data), whole.finish()])
        live, draw = LiveSamples(native, 8000, encoding), random.Random(native)
        found = [live.push(packet) for packet in divided(data, draw, [0, 1, 2, 3, 999, 5000])]
        np.testing.assert_array_equal(np.concatenate([*found, live.finish()]), expected)
    broken = LiveSamples(8000, 8000, encoding)
    broken.push(b"x")
    with pytest.raises(DataError, match="ends within a sample"):
        broken.finish()


def test_a_stream_has_the_text_of_the_file_whatever_its_packets(serve: Callable[..., Served], speech: np.ndarray, models: Any) -> None:
    served = serve("max_seconds=60")
    draw = random.Random(1)
    heard = (np.frombuffer(pcm16(speech), "<i2") / np.float32(32768)).astype(np.float32)
    for name in models:
        expected = models[name].transcribe(heard).text
        several = [streamed(served, divided(pcm16(speech), draw, sizes), model=name) for sizes in ([1 << 17], [1, 77, 2000], [640])]
        several.append(streamed(served, divided(heard.tobytes(), draw, [5, 3000]), model=name, encoding="float32", partials=False))
        finals = [[each for each in messages if each["type"] == "final"] for messages in several]
        assert finals.count(finals[0]) == len(finals)
        for messages in several:
            assert messages[0] == {"type": "ready", "model": name, "sample_rate": 8000, "incremental": name == "live"}
            assert messages[-2] == {"type": "done", "text": expected, "seconds": round(len(speech) / 8000, 3)}
            assert messages[-1]["code"] == 1000
        assert any(each["type"] == "partial" for each in several[2])
        assert not any(each["type"] == "partial" for each in several[3])
        text = ""
        for final in finals[0]:
            text += final["text"] if final.get("continues") or not text else f" {final['text']}"
        assert text == expected
        assert all(0 <= word["start"] < word["end"] <= len(speech) / 8000 + 0.1 for final in finals[0] for word in final["words"])
    wait_for(lambda: served.service.memory.held == 0)
    assert served.counted("101") == 8


BAD_STARTS = {
    b"\0\0": "samples come behind a first message",
    "no json": "cannot be read",
    "[" * 100_000: "cannot be read",
    "{}": "rate: Field required",
    '{"rate": 8000, "encoding": "mp3"}': "encoding: Input should be",
    '{"rate": 10}': "rate: Input should be greater",
    '{"rate": 1e300}': "rate: Unable to parse",
    '{"rate": 8000, "rates": 1}': "rates: Extra inputs",
    '{"rate": 8000, "model": "../x"}': "there is no model '../x' here; ask for live or offline",
}


@pytest.mark.parametrize("first", list(BAD_STARTS), ids=range(len(BAD_STARTS)))
def test_a_first_message_that_is_none_is_refused_with_the_reason(serve: Callable[..., Served], first: str | bytes) -> None:
    served = serve()
    with client(served) as connection:
        connection.send(first)
        error, closed = until_closed(connection)
    assert (error["type"], closed["code"], BAD_STARTS[first] in error["error"]) == ("error", 1008, True), error
    wait_for(lambda: served.service.live.open == 0 == served.service.memory.held)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (np.full(2000, np.nan, "<f4").tobytes(), "NaN or infinite"),
        (np.full(2000, 1e30, "<f4").tobytes(), "full scale is 1"),
        (b"\0" * 8001, "ends within a sample"),
        ('{"type": "start"}', "type: Input should be 'end'"),
        (b"\0" * 4 * 8000 * 3, "a stream may last 2 s"),
    ],
)
def test_samples_that_are_no_audio_end_a_stream_with_the_reason(serve: Callable[..., Served], packet: bytes | str, reason: str) -> None:
    messages = streamed(serve("stream_seconds=2"), [packet], encoding="float32")
    assert (reason in messages[-2]["error"], messages[-1]["code"]) == (True, 1008), messages


def test_clients_that_say_nothing_and_streams_that_are_too_many_are_sent_away(serve: Callable[..., Served]) -> None:
    served = serve("header_seconds=0.3", "body_seconds=0.4", "streams=2")
    with client(served) as silent, client(served) as stops:
        stops.send('{"rate": 8000}')
        with pytest.raises(websockets.InvalidStatus) as caught:
            client(served)
        assert (caught.value.response.status_code, b"too many streams" in caught.value.response.body) == (503, True)
        assert "the first message did not come within" in until_closed(silent)[0]["error"]
        assert "samples, or the end, did not come within" in until_closed(stops)[1]["error"]
    wait_for(lambda: served.service.live.open == 0)
    assert streamed(served, [bytes(16_000)])[-1]["code"] == 1000


def test_pages_of_other_servers_open_no_stream(serve: Callable[..., Served]) -> None:
    served = serve()
    for origin, status in (("http://elsewhere.example", 403), ("null", 403), (f"http://127.0.0.1:{served.address[1]}", 101)):
        if status == 101:
            with client(served, origin=origin):
                pass
        else:
            with pytest.raises(websockets.InvalidStatus) as caught:
                client(served, origin=origin)
            assert caught.value.response.status_code == status
    with pytest.raises(websockets.InvalidStatus) as caught:
        connect(f"ws://127.0.0.1:{served.address[1]}/health")
    assert caught.value.response.status_code == 200  # no WebSocket, so a request like any other
    assert served.ask(b"", path="/stream", method="GET")[0] == 426


def raw(served: Served, receive_buffer: int | None = None) -> socket.socket:
    """A connection that is a WebSocket, to which any bytes can be sent."""
    connection = served.connect(receive_buffer)
    lines = ["GET /stream HTTP/1.1", "Host: here", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    connection.sendall("\r\n".join([*lines, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "", ""]).encode())
    assert connection.recv(1000).startswith(b"HTTP/1.1 101 ")
    return connection


def frame(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def cut_off(connection: socket.socket, data: bytes) -> bool:
    """Send something again and again until the service ends the connection; whether it did."""
    connection.settimeout(1)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            connection.sendall(data)
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


def test_what_only_fills_memory_ends_a_stream_and_leaves_no_trace(serve: Callable[..., Served], capfd: pytest.CaptureFixture[str]) -> None:
    served = serve("header_seconds=60", "write_seconds=60")
    with raw(served) as parts:  # each part has no bytes, so that no limit of bytes is ever reached
        parts.sendall(frame(Opcode.BINARY, b"", fin=False))
        assert cut_off(parts, frame(Opcode.CONT, b"", fin=False) * 5000)
    with raw(served, 2048) as pings:  # whose answers are not read
        assert cut_off(pings, frame(Opcode.PING, b"x" * 125) * 500)
    with raw(served) as large:
        large.sendall(frame(Opcode.BINARY, bytes(MOST_IN_MESSAGE + 1)))
        assert b"\x88" in large.recv(1000)
    for said in (b"\xff" * 100, frame(Opcode.TEXT, b"\xff\xfe"), frame(Opcode.TEXT, b"a")[:2] + b"a", b"\x00"):
        with raw(served) as broken:
            broken.sendall(said)
            broken.shutdown(socket.SHUT_WR)
            while broken.recv(1000):
                pass
    with raw(served) as gone:
        gone.sendall(frame(Opcode.TEXT, b'{"rate": 8000}') + frame(Opcode.BINARY, bytes(8000)))
    wait_for(lambda: served.service.live.open == 0 == served.service.memory.held)
    assert streamed(served, [bytes(16_000)])[-1]["code"] == 1000
    assert capfd.readouterr().err == ""  # where uvicorn writes


def test_a_client_that_reads_nothing_is_not_waited_for(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_MOST_UNREAD", 1 << 40)
    with raw(serve("header_seconds=60", "write_seconds=0.3"), 2048) as deaf:
        assert cut_off(deaf, frame(Opcode.PING, b"x" * 125) * 500)


def test_what_streams_hold_is_counted_with_the_memory_of_all_requests(serve: Callable[..., Served], speech: np.ndarray) -> None:
    served = serve("max_seconds=0.1", "max_megabytes=0.1", "memory_megabytes=1.1")
    packets = divided(pcm16(np.tile(speech, 4)), random.Random(0), [8000])
    messages = streamed(served, packets, model="offline")
    assert (messages[-2].get("error"), messages[-1]["code"]) == ("other requests take all memory; try again", 1013)
    wait_for(lambda: served.service.memory.held == 0)


def test_a_stream_that_the_model_fails_at_says_so_and_others_go_on(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()
    monkeypatch.setattr(LiveTranscriber, "finish", lambda self: 1 / 0)
    messages = streamed(served, [bytes(8000)], model="live")
    assert (messages[-2]["error"], messages[-1]["code"]) == ("the service has failed at this stream", 1011)
    assert "ZeroDivisionError" in caplog.text
    assert streamed(served, [bytes(8000)], model="offline")[-1]["code"] == 1000


def test_the_end_of_the_service_ends_streams(serve: Callable[..., Served]) -> None:
    served = serve("drain_seconds=1000")
    with client(served) as connection, raw(served, 2048) as deaf:
        deaf.sendall(frame(Opcode.PING, b"x" * 125) * 1000)
        connection.send('{"rate": 8000}')
        assert json.loads(connection.recv(timeout=60))["type"] == "ready"
        served.server.should_exit = True
        assert until_closed(connection)[-1]["code"] == 1012
        served.thread.join(60)
        assert not served.thread.is_alive()
