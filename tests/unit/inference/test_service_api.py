"""What programs of other people send: forms, OpenAI's own client, tokens, HTTPS, and the pages that a browser loads."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from certificates import certificate
from conftest import REPOSITORY
from documented import blocks_of
from serving import Served, serving, wav
from starlette.testclient import TestClient
from websockets.sync.client import connect

import speechtrain
from speechtrain.app.arguments import arguments_of
from speechtrain.config.compose import compose_command
from speechtrain.config.schemas.commands import ServeConfig
from speechtrain.errors import ConfigError
from speechtrain.inference.find import model_names
from speechtrain.inference.recognizer import Recognizer
from speechtrain.inference.service.access import Access
from speechtrain.inference.service.application import application
from speechtrain.inference.service.refusals import Refusal
from speechtrain.inference.service.service import Service
from speechtrain.serve import run

TOKENS = ("the-token-of-the-first", "the-token-of-the-second")


@pytest.fixture(scope="module")
def models(trained: Path) -> dict[str, Recognizer]:
    model = speechtrain.load(str(trained))
    return {"tones": model, "a/second": model}


@pytest.fixture
def serve(models: dict[str, Recognizer]) -> Iterator[Callable[..., Served]]:
    with serving(models) as start:
        yield start


@pytest.fixture
def client(models: dict[str, Recognizer]) -> Iterator[TestClient]:
    with TestClient(application(Service(models, compose_command(ServeConfig, ["max_megabytes=1", "max_seconds=5"])))) as client:
        yield client


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# who may\n{TOKENS[0]}\n\n{TOKENS[1]}\n")
    return path


def test_a_form_has_the_answer_of_its_file_alone(client: TestClient, spoken: dict[str, str]) -> None:
    for path in list(spoken)[:3]:
        content = Path(path).read_bytes()
        alone = client.post("/transcribe", params={"words": "true"}, content=content).json()
        form = client.post("/transcribe", files={"file": ("a.wav", content)}, data={"words": "true", "model": "a/second"}).json()
        del alone["latency"], form["latency"]
        assert form == alone
        assert alone["words"]
    assert client.post("/transcribe?model=none", content=content).json() == {
        "error": "there is no model 'none' here; ask for tones or a/second"
    }


def boundary(content: bytes, name: str = "b") -> dict[str, Any]:
    return {"content": content, "headers": {"content-type": f"multipart/form-data; boundary={name}"}}


CUT_OFF = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nRI'
WAV = {"file": ("a.wav", b"x")}
BAD_FORMS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no file": ({"files": {"model": (None, "tones")}}, 400, "the form has no file; send one as 'file'"),
    "a file of another name": ({"files": {"audio": ("a.wav", b"x")}}, 400, "the file is in the field 'audio'; send it as 'file'"),
    "a file without a name": ({"files": {"file": (None, "x")}}, 400, "has no file name"),
    "two files": ({"files": [("file", ("a.wav", b"x")), ("file", ("b.wav", b"x"))]}, 400, "Too many files"),
    "many fields": ({"files": [(f"f{number}", (None, "x")) for number in range(100)]}, 400, "Too many fields"),
    "a large field": ({"files": {"prompt": (None, "x" * 100_000)}}, 400, "Part exceeded maximum size"),
    "a large file": ({"files": {"file": ("a.wav", b"x" * 1_100_000)}}, 413, "a request may have 1 MB"),
    "no audio": ({"files": WAV, "data": {"model": "tones"}}, 400, "cannot be read as audio"),
    "an empty file": ({"files": {"file": ("a.wav", b"")}, "data": {"model": "tones"}}, 400, "the form has no file"),
    "an unknown model": ({"files": WAV, "data": {"model": b"\xff\0"}}, 404, "there is no model"),
    "no boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "Missing boundary"),
    "no form": (boundary(b"x" * 9000), 400, "the form cannot be read"),
    "long headers": (boundary(b"--b\r\n" + b"X" * 900_000), 400, "the form cannot be read"),
    "a long boundary": (boundary(b"x", "b" * 9000), 400, "the form cannot be read"),
    "a form that ends": (
        boundary(b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nRI'),
        400,
        "last boundary is missing",
    ),
}


@pytest.mark.parametrize("path", ["/transcribe", "/v1/audio/transcriptions?model=tones"])
def test_forms_that_are_wrong_are_refused_with_the_reason_and_hold_nothing(client: TestClient, path: str) -> None:
    for name, (sent, status, reason) in BAD_FORMS.items():
        answer = client.post(path, **sent)
        error = answer.json()["error"]
        said = error if path == "/transcribe" else error["message"]
        assert (answer.status_code, reason in said) == (status, True), f"{name}: {said}"
    assert "speechtrain_held_bytes 0.0" in client.get("/metrics").text
    assert client.post("/transcribe", content=wav()).status_code == 200


def test_openais_own_client_gets_what_it_asks_for(serve: Callable[..., Served], spoken: dict[str, str], token_file: Path) -> None:
    served = serve(f"token_file={token_file}")
    address = f"http://127.0.0.1:{served.address[1]}/v1"
    client = openai.OpenAI(base_url=address, api_key=TOKENS[1], max_retries=0)
    path = next(path for path, text in spoken.items() if served.service.models["tones"].recognizer.transcribe(path).text == text)
    text = spoken[path]
    assert [model.id for model in client.models.list()] == ["tones", "a/second"]
    assert client.models.retrieve("a/second").id == "a/second"

    def create(model: str = "tones", **options: Any) -> Any:
        with Path(path).open("rb") as file:
            return client.audio.transcriptions.create(model=model, file=file, **options)

    assert create().text == create("a/second", language="de", prompt="letters", temperature=0.5).text == text
    assert create(response_format="text") == f"{text}\n"
    assert create(response_format="srt").startswith("1\n00:00:0")
    assert create(response_format="vtt").startswith("WEBVTT\n\n00:00:0")
    verbose = create(response_format="verbose_json", timestamp_granularities=["word", "segment"], language="de")
    assert (verbose.text, verbose.language, verbose.task) == (text, "de", "transcribe")
    assert [word.word for word in verbose.words] == [text]
    assert 0 <= verbose.words[0].start < verbose.words[0].end <= verbose.duration
    assert (verbose.segments[0].text, verbose.segments[0].start) == (text, verbose.words[0].start)
    assert verbose.segments[0].avg_logprob <= 0
    assert create(response_format="verbose_json").words is None
    with pytest.raises(openai.NotFoundError, match="there is no model 'whisper-1' here") as unknown:
        create("whisper-1")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="response_format is 'xml'"):
        create(response_format="xml")
    with pytest.raises(openai.BadRequestError, match="timestamp_granularities has 'letter'"):
        create(response_format="verbose_json", timestamp_granularities=["letter"])
    with pytest.raises(openai.BadRequestError, match="cannot be read as audio"):
        client.audio.transcriptions.create(model="tones", file=b"no audio")
    with pytest.raises(openai.AuthenticationError, match="the token is not known here"):
        openai.OpenAI(base_url=address, api_key="x" * 20, max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tones", input="x")


def test_what_needs_a_token_and_what_does_not(serve: Callable[..., Served], token_file: Path) -> None:
    served = serve(f"token_file={token_file}")
    content = wav()
    for header, status in (
        ("", 401),
        (f"Basic {TOKENS[0]}", 401),
        ("Bearer", 401),
        ("Bearer x", 401),
        ("Bearer \xff", 401),
        (f"bearer {TOKENS[0]}", 200),
    ):
        headers = (f"Authorization: {header}",) if header else ()
        assert served.ask(content, *headers)[0] == status, header
        assert served.ask(b"", *headers, path="/metrics", method="GET")[0] == status, header
        assert served.ask(b"", *headers, path="/v1/models", method="GET")[0] == status
    for path in ("/", "/docs", "/openapi.json", "/health", "/static/page.js"):
        assert served.ask(b"", path=path, method="GET")[0] == 200
    address = f"ws://127.0.0.1:{served.address[1]}/stream"
    for token, kind in ((None, "error"), ("x", "error"), (TOKENS[0], "ready")):
        with connect(address) as stream:
            stream.send(json.dumps({"rate": 8000, "token": token}))
            assert json.loads(stream.recv(timeout=60))["type"] == kind
    with connect(address, additional_headers={"Authorization": f"Bearer {TOKENS[1]}"}) as stream:
        stream.send(json.dumps({"rate": 8000}))
        assert json.loads(stream.recv(timeout=60))["type"] == "ready"


def test_each_token_has_its_own_number_of_requests_a_minute(token_file: Path) -> None:
    now = 0.0
    cfg = compose_command(ServeConfig, [f"token_file={token_file}", "requests_per_minute=3"])
    access = Access(cfg, lambda: now)
    for _ in range(3):
        access.admit(TOKENS[0])
    with pytest.raises(Refusal, match="3 requests a minute; try again in 20 s") as refused:
        access.admit(TOKENS[0])
    assert (refused.value.status_code, refused.value.headers) == (429, {"Retry-After": "20"})
    access.admit(TOKENS[1])
    now = 20.0
    access.admit(TOKENS[0])
    now = 1000.0
    for _ in range(3):
        access.admit(TOKENS[0])
    with pytest.raises(Refusal, match="try again in 20 s"):
        access.admit(TOKENS[0])


@pytest.mark.parametrize(
    ("keys", "content", "said"),
    [
        (["token_file=none"], "", r"token_file: .*none cannot be read \(No such file"),
        (["token_file=tokens"], "# none\n\n", "has no tokens"),
        (["token_file=tokens"], "short\n", "line 1: a token has at least 16 characters"),
        (["token_file=tokens"], "long enough but with spaces\n", "without spaces"),
        (["token_file=tokens"], "\udcff" * 20, "it is no UTF-8"),
        (["requests_per_minute=3"], "", "token_file names no tokens"),
        (["tls_key=key.pem"], "", "tls_key: has no certificate"),
        (["tls_certificate=none.pem"], "", r"tls_certificate: there is no file none\.pem"),
        (["tls_certificate=tokens"], "no certificate", "tls_certificate: tokens cannot be used"),
        (["from=[]"], "", "from: names no model"),
        (["from=[a/x,b/x]"], "", "two models have the name 'a/x'|there is no file a/x"),
        (["from={a: null}"], "", "'a' names no model"),
        (["from={a: {b: c}}"], "", "'a' names no model"),
    ],
)
def test_a_mistake_in_the_keys_is_told_before_a_model_is_loaded(tmp_path: Path, keys: list[str], content: str, said: str) -> None:
    (tmp_path / "tokens").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=said):
        run(["port=0", *keys])


def test_models_have_the_names_that_are_given_or_those_of_their_files(tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "two.zip").touch()

    def names(value: str) -> dict[str, str]:
        return model_names(arguments_of(ServeConfig, [f"from={value}"])[0].source)

    assert names("last") == {"last": "last"}
    assert names("[runs/one,two.zip]") == {"one": "runs/one", "two": "two.zip"}
    assert names("models:/digits/2") == {"digits/2": "models:/digits/2"}
    assert names("hf://owner/name") == {"owner/name": "hf://owner/name"}
    assert names("{whisper-1: last, b: two.zip}") == {"whisper-1": "last", "b": "two.zip"}
    with pytest.raises(ConfigError, match="two models have the name 'one'"):
        names("[runs/one,runs/one/]")


def test_https_and_streams_in_it_and_clients_that_do_not_speak_it(serve: Callable[..., Served], tmp_path: Path) -> None:
    public, key = certificate(tmp_path)
    served = serve(f"tls_certificate={public}", f"tls_key={key}", "header_seconds=0.5")
    context = ssl.create_default_context(cafile=str(public))
    address = f"127.0.0.1:{served.address[1]}"
    assert httpx.post(f"https://{address}/transcribe", content=wav(), verify=context, timeout=60).status_code == 200
    too_much = httpx.post(f"https://{address}/transcribe", content=b"0" * 3_000_000, verify=context, timeout=60)
    assert too_much.status_code == 413
    with connect(f"wss://{address}/stream", ssl=context) as stream:
        stream.send('{"rate": 8000}')
        assert json.loads(stream.recv(timeout=60))["type"] == "ready"
    with served.connect() as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in plain.recv(1000)
    with served.connect() as silent, context.wrap_socket(served.connect(), server_hostname="127.0.0.1") as slow:
        slow.sendall(b"GET")
        assert slow.recv(1000) == b""
        assert httpx.get(f"https://{address}/health", verify=context, timeout=60).status_code == 200
        silent.sendall(b"x")


def test_the_description_is_whole_and_what_pages_load_lies_here(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.")
    assert set(described["paths"]) == {"/transcribe", "/health", "/metrics", "/v1/audio/transcriptions", "/v1/models", "/v1/models/{model}"}
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)):
        assert name in described["components"]["schemas"]
    assert "multipart/form-data" in described["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(loaded) >= 4
        for address in loaded:
            assert address.startswith("/")
            assert client.get(address).status_code == 200, address
    for name in ("../service.py", "..%2fservice.py", "%2e%2e/service.py", "/etc/passwd", "swagger_ui.css"):
        assert client.get(f"/static/{name}").status_code in (404, 405), name


def test_requests_that_are_refused_at_once_are_refused_before_their_body_is_read(serve: Callable[..., Served], token_file: Path) -> None:
    served = serve(f"token_file={token_file}")
    content = b"0" * 900_000
    status, said = served.ask(content)
    assert (status, json.loads(said)["error"].startswith("a token is needed")) == (401, True)
    assert served.ask(content, f"Authorization: Bearer {TOKENS[0]}", path="/transcribe?model=x")[0] == 404
    assert served.service.memory.held == 0
    assert np.isclose(served.counted("401"), 1)


def test_the_page_on_serving_runs_as_it_stands(
    models: dict[str, Recognizer], spoken: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, text = next((path, text) for path, text in spoken.items() if models["tones"].transcribe(path).text == text)
    shutil.copy(path, "a.wav")
    with serving({"last": models["tones"]}) as start:
        address = f"127.0.0.1:{start().address[1]}"
        ran = 0
        for block in blocks_of(REPOSITORY / "docs" / "serve.md", "docs/serve.md"):
            content = block.content.replace("localhost:8080", address)
            if block.language == "python":
                exec(compile(content, str(block), "exec"), {})
            elif "https" not in content and "curl" in content:
                subprocess.run(["bash", "-ec", content.replace("curl ", "curl --fail --silent ")], check=True, timeout=60)
            else:
                continue
            ran += 1
            assert text in capfd.readouterr().out
    assert ran == 3
