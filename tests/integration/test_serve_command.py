"""The service over HTTP, from its start to Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechtrain


def test_a_service_transcribes_counts_and_refuses(trained: Path, spoken: dict[str, str]) -> None:
    from starlette.testclient import TestClient

    from speechtrain.config.compose import compose_command
    from speechtrain.config.schemas.commands import ServeConfig
    from speechtrain.inference.service.application import application
    from speechtrain.inference.service.service import Service

    cfg = compose_command(ServeConfig, ["max_megabytes=0.2", "max_seconds=5"])
    with TestClient(application(Service({"tones": speechtrain.load(str(trained))}, cfg))) as client:
        for path, text in spoken.items():
            answer = client.post("/transcribe", params={"words": "true"}, content=Path(path).read_bytes())
            assert answer.status_code == 200
            assert answer.json()["seconds"] == pytest.approx(soundfile.info(path).duration, abs=1e-3)
            if answer.json()["text"] == text:
                assert [word["text"] for word in answer.json()["words"]] == [text]
        bad = client.post("/transcribe", content=b"no audio")
        assert (bad.status_code, "cannot be read as audio" in bad.json()["error"]) == (400, True)
        assert client.post("/transcribe").status_code == 400
        buffer = io.BytesIO()
        soundfile.write(buffer, np.zeros(8000 * 6), 8000, format="FLAC")
        long = client.post("/transcribe", content=buffer.getvalue())
        assert (long.status_code, "lasts 6 s; 5 s are allowed" in long.json()["error"]) == (400, True)
        assert client.post("/transcribe", content=b"0" * 300_000).status_code == 413
        assert client.post("/transcribe", content=iter([b"0" * 150_000] * 2)).status_code == 413
        assert client.get("/transcribe").status_code == 405
        health = client.get("/health").json()
        assert (health["status"], health["sample_rate"], health["waiting"]) == ("ok", 8000, 0)
        metrics = client.get("/metrics").text
        assert 'speechtrain_requests_total{status="200"} 8.0' in metrics
        assert 'speechtrain_requests_total{status="400"} 3.0' in metrics
        assert "speechtrain_latency_seconds_bucket" in metrics


def test_the_command_serves_from_the_moment_it_says_so_until_ctrl_c(trained: Path, spoken: dict[str, str]) -> None:
    import httpx

    path, text = next(iter(spoken.items()))
    server = subprocess.Popen(
        [sys.executable, "-m", "speechtrain.serve", f"from={trained}", "port=0"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[1]
        assert httpx.post(f"{url}/transcribe", content=Path(path).read_bytes(), timeout=60).json()["text"] == text
        refused = httpx.post(f"{url}/transcribe", content=b"no audio", timeout=60)
        assert "BytesIO" not in refused.text
        busy = subprocess.run(
            [sys.executable, "-m", "speechtrain.serve", f"from={trained}", f"port={url.rpartition(':')[2]}"],
            capture_output=True,
            check=False,
        )
        assert (busy.returncode, b"cannot be opened" in busy.stderr) == (2, True)
        server.send_signal(signal.SIGINT)
        left, _ = server.communicate(timeout=30)
    finally:
        server.kill()
    assert server.returncode == 0
    assert "Traceback" not in left


def test_requests_that_wait_together_are_computed_together_and_too_many_are_sent_away(trained: Path, spoken: dict[str, str]) -> None:
    import asyncio

    import httpx

    from speechtrain.config.compose import compose_command
    from speechtrain.config.schemas.commands import ServeConfig
    from speechtrain.inference.service.application import application
    from speechtrain.inference.service.service import Service

    content = [Path(path).read_bytes() for path in spoken]

    async def ask() -> tuple[list[httpx.Response], str]:
        service = Service({"tones": speechtrain.load(str(trained))}, compose_command(ServeConfig, ["queue=20"]))
        transport = httpx.ASGITransport(application(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            asking = [asyncio.create_task(client.post("/transcribe", content=content[n % 8])) for n in range(30)]
            while service.models["tones"].queue.qsize() < 20:
                await asyncio.sleep(0.01)
            worker = asyncio.create_task(service.models["tones"].work())
            answers = await asyncio.gather(*asking)
            metrics = (await client.get("/metrics")).text
            worker.cancel()
        return answers, metrics

    answers, metrics = asyncio.run(ask())
    states = [answer.status_code for answer in answers]
    assert states.count(200) >= 20
    assert set(states) <= {200, 503}
    texts = [answer.json()["text"] == list(spoken.values())[n % 8] for n, answer in enumerate(answers) if answer.status_code == 200]
    assert np.mean(texts) > 0.8
    assert 'speechtrain_batch_size_bucket{le="1.0"} 0.0' in metrics
