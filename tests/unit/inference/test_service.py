"""The HTTP service among clients that are slow, greedy, gone or malicious, over real connections."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from serving import Served, answer, request, rest, serving, wait_for, wav

import speechtrain
from speechtrain.config.compose import compose_command
from speechtrain.config.schemas.commands import ServeConfig
from speechtrain.errors import ConfigError
from speechtrain.inference.recognizer import Recognizer
from speechtrain.inference.service.connections import limited_protocol
from speechtrain.inference.service.service import Service

IMPATIENT = ("header_seconds=0.3", "body_seconds=0.3", "write_seconds=0.3")
PATIENT = ("header_seconds=60", "body_seconds=60", "write_seconds=60")


@pytest.fixture(scope="module")
def model(trained: Path) -> Recognizer:
    return speechtrain.load(str(trained))


@pytest.fixture
def serve(model: Recognizer) -> Iterator[Callable[..., Served]]:
    with serving({"tones": model}) as start:
        yield start


def test_headers_that_come_byte_by_byte_are_not_waited_for(serve: Callable[..., Served]) -> None:
    served = serve(*IMPATIENT)
    with served.connect() as slow, served.connect() as silent:
        for byte in request(0, "X-More: " + "x" * 10_000):
            try:
                slow.send(bytes([byte]))
            except ConnectionError:
                break
            time.sleep(0.01)
        else:
            pytest.fail("all of it was read")
        assert rest(silent) == b""
    assert served.counted("408") == 2
    assert served.ask(wav())[0] == 200


def test_a_body_that_comes_byte_by_byte_is_refused_and_one_at_the_least_rate_is_not(serve: Callable[..., Served]) -> None:
    served = serve("body_seconds=0.3", "min_rate=100000")
    with served.connect() as slow:
        slow.sendall(request(1000) + b"x")
        status, said = answer(slow)
    assert (status, "send at least 100000 in a second" in said) == (408, True)
    served = serve("body_seconds=0.3", "min_rate=1")
    content = wav()
    with served.connect() as live:
        live.sendall(request(len(content)) + content[:50])
        time.sleep(0.6)
        live.sendall(content[50:])
        assert answer(live)[0] == 200


def test_a_client_that_reads_no_answers_is_cut_off(serve: Callable[..., Served]) -> None:
    served = serve(*IMPATIENT)
    with served.connect(receive_buffer=1024) as deaf:
        asking = request(0, path="/metrics", method="GET") * 200
        with contextlib.suppress(ConnectionError):
            deaf.settimeout(0.1)
            until = time.monotonic() + 60
            while time.monotonic() < until:
                with contextlib.suppress(TimeoutError):
                    deaf.sendall(asking)
            pytest.fail("it was not cut off")
        assert served.ask(wav())[0] == 200


@pytest.mark.parametrize("headers", [(), ("Connection: close",)])
@pytest.mark.parametrize("announced", [True, False])
def test_a_client_that_sends_too_much_before_it_reads_learns_why_it_is_refused(
    serve: Callable[..., Served], headers: tuple[str, ...], announced: bool
) -> None:
    served = serve()
    content = b"0" * 10_000_000
    with served.connect() as connection:
        if announced:
            connection.sendall(request(len(content), *headers) + content)
        else:
            chunked = request(0, "Transfer-Encoding: chunked", *headers).replace(b"Content-Length: 0\r\n", b"")
            connection.sendall(chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content))
        status, said = answer(connection)
    assert (status, json.loads(said)["error"]) == (413, "a request may have 1 MB; this one has more")


def test_no_more_connections_than_allowed_are_served(serve: Callable[..., Served]) -> None:
    served = serve("connections=3", *PATIENT)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(served.connect()).sendall(b"POST")
        status, said = served.ask(wav())
        assert (status, json.loads(said)["error"]) == (503, "too many connections; try again")
    wait_for(lambda: served.ask(wav())[0] == 200)
    assert served.counted("503") >= 1


def test_all_bodies_together_are_bounded_and_given_back(serve: Callable[..., Served]) -> None:
    served = serve("max_seconds=1", "memory_megabytes=1.1", *PATIENT)
    with served.connect() as greedy:
        greedy.sendall(request(1_000_000) + b"0" * 900_000)
        wait_for(lambda: served.service.registry.get_sample_value("speechtrain_held_bytes") == 900_000)
        status, said = served.ask(b"0" * 300_000)
        assert (status, "all memory" in said) == (503, True)
        assert served.ask(wav())[0] == 200
    wait_for(lambda: served.service.registry.get_sample_value("speechtrain_held_bytes") == 0)
    assert served.counted("499") == 1
    assert served.ask(b"0" * 300_000)[0] == 400


def test_less_memory_than_one_request_takes_is_refused_before_serving(model: Recognizer) -> None:
    with pytest.raises(ConfigError, match=r"memory_megabytes: is 1, and one request .* takes 44"):
        Service({"tones": model}, compose_command(ServeConfig, ["memory_megabytes=1"]))


def test_clients_that_leave_are_counted_and_leave_no_trace_in_the_log(
    serve: Callable[..., Served], model: Recognizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served, may_go = serve(*PATIENT), threading.Event()
    transcribe_all = model.transcribe_all
    monkeypatch.setattr(model, "transcribe_all", lambda audios: may_go.wait(60) and transcribe_all(audios))
    with served.connect() as in_the_body:
        in_the_body.sendall(request(1000) + b"x")
    wait_for(lambda: served.counted("499") == 1)
    content = wav()
    with served.connect() as computed, served.connect() as waits:
        computed.sendall(request(len(content)) + content)
        wait_for(lambda: served.service.registry.get_sample_value("speechtrain_held_bytes") == 4 * 4000)
        waits.sendall(request(len(content)) + content)
        wait_for(lambda: served.service.registry.get_sample_value("speechtrain_queue_length") == 1)
    wait_for(lambda: served.counted("499") == 3)
    may_go.set()
    assert served.ask(content)[0] == 200
    wait_for(lambda: served.service.registry.get_sample_value("speechtrain_held_bytes") == 0)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_request_that_the_model_fails_at_is_counted_and_spoils_no_other(
    serve: Callable[..., Served], model: Recognizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served, may_go = serve(*PATIENT), threading.Event()
    transcribe_all = model.transcribe_all

    def compute(audios: list[np.ndarray]) -> list[object]:
        may_go.wait(60)
        if any(len(samples) == 1234 for samples in audios):
            raise ValueError("a defect")
        return list(transcribe_all(audios))

    monkeypatch.setattr(model, "transcribe_all", compute)
    contents = [wav(), *[wav()] * 3, wav(np.zeros(1234)), *[wav()] * 3]
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(served.connect()) for _ in contents]
        for number, (connection, content) in enumerate(zip(connections, contents, strict=True)):
            connection.sendall(request(len(content)) + content)
            held = 4 * sum(1234 if number_of == 4 else 4000 for number_of in range(number + 1))
            wait_for(lambda held=held: served.service.registry.get_sample_value("speechtrain_held_bytes") == held)  # type: ignore[misc]
        may_go.set()
        answers = [answer(connection) for connection in connections]
    assert [status for status, _ in answers] == [200, 200, 200, 200, 500, 200, 200, 200]
    assert json.loads(answers[4][1]) == {"error": "the service has failed at this request"}
    assert served.counted("500") == 1
    assert "a defect" in caplog.text


@pytest.mark.parametrize("loud", [3e38, 1e20, 32768.0])
def test_samples_that_are_no_audio_are_refused_with_the_reason(serve: Callable[..., Served], loud: float) -> None:
    samples = 0.1 * np.sin(np.arange(4000) * 0.3)
    samples[100] = loud
    status, said = serve().ask(wav(samples, subtype="FLOAT"))
    assert (status, "samples up to" in json.loads(said)["error"]) == (400, True)


def test_the_end_answers_what_is_computed_and_waits_for_nobody_slow(
    serve: Callable[..., Served], model: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, may_go = serve("drain_seconds=1000", *PATIENT), threading.Event()
    transcribe_all = model.transcribe_all
    monkeypatch.setattr(model, "transcribe_all", lambda audios: may_go.wait(60) and transcribe_all(audios))
    content = wav()
    with served.connect() as good, served.connect() as headers, served.connect() as body, served.connect(1024) as deaf, served.connect():
        good.sendall(request(len(content)) + content)
        headers.sendall(b"POST /tran")
        body.sendall(request(1000) + b"x")
        deaf.settimeout(1)
        with contextlib.suppress(TimeoutError):
            while True:
                deaf.sendall(request(0, path="/metrics", method="GET") * 100)
        served.server.should_exit = True
        assert (rest(headers), rest(body)) == (b"", b"")
        may_go.set()
        assert answer(good)[0] == 200
        served.thread.join(60)
        assert not served.thread.is_alive()


def test_requests_that_are_no_http_are_answered_and_counted(serve: Callable[..., Served], caplog: pytest.LogCaptureFixture) -> None:
    served = serve()
    chunked = request(0, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    for said in (b"\x16\x03\x01\x02\x00\x01\xfc", request(0).replace(b"0", b"x"), chunked + b"3\r\nabc\r\nx", chunked + b"3\r\nabcdef"):
        with served.connect() as connection:
            connection.sendall(said + b"\r\n\r\n" + bytes(100_000))
            assert rest(connection).startswith(b"HTTP/1.1 400 ")
    wait_for(lambda: (served.counted("400"), served.counted("499")) == (2, 2))
    content = b"0" * 1_500_000
    with served.connect() as connection:
        connection.sendall(chunked + b"%x\r\n%s" % (len(content), content))
        assert answer(connection)[0] == 413
        connection.sendall(b"no chunk" * 1000)
        assert rest(connection) == b""
    assert served.ask(wav(), "Upgrade: websocket", "Connection: upgrade")[0] == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING and "HTTP" not in record.msg] == []


def test_uvicorn_has_what_the_limits_of_connections_are_built_on(model: Recognizer) -> None:
    uvicorns = limited_protocol(Service({"tones": model}, compose_command(ServeConfig, []))).__mro__[2]
    missing = {"connection_made", "connection_lost", "data_received", "send_400_response", "shutdown"} - set(vars(uvicorns))
    assert not missing, f"uvicorn {uvicorn.__version__} has no {missing}, which speechtrain.inference.service.connections.py overrides"
