"""Checkpoints by their names on the hub: fetched from one, found again without a network, refused in plain words."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechtrain import compose
from speechtrain.config.checkpoint_values import with_checkpoint_files
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.pretrained import Checkpoint
from speechtrain.errors import ConfigError

COMMITS = {"main": "a" * 40, "v2": "b" * 40}
FILES = {
    "config.json": b'{"model_type": "wav2vec2", "hidden_size": 16}',
    "preprocessor_config.json": b'{"do_normalize": false}',
    "model.safetensors": b"weights",
    "adapter.deu.safetensors": b"adapter",
    "run_me.py": b"raise SystemExit",
}


class _Hub(http.server.BaseHTTPRequestHandler):
    """Has one checkpoint, `someone/small`, of two revisions, and one that asks for consent."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0].split("/")[1:]
        if path[:4] == ["api", "models", "someone", "small"]:
            commit = COMMITS.get(path[5], path[5] if path[5] in COMMITS.values() else None)
            if commit is None:
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body=False)
            files = [{"type": "file", "path": name, "rfilename": name, "size": len(data), "oid": "c" * 40} for name, data in FILES.items()]
            found = files if path[4] == "tree" else {"id": "someone/small", "sha": commit, "siblings": files}
            return self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"}, with_body=with_body)
        if path[:3] == ["someone", "small", "resolve"]:
            self.asked.append(path[-1])
            data = FILES[path[-1]]
            etag = hashlib.sha256(data).hexdigest()
            return self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": path[3]}, with_body=with_body)
        refused = (403, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
        return self._send(refused[0], b"", {"X-Error-Code": refused[1]}, with_body=False)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serve a hub, and give the files that were asked for."""
    from huggingface_hub import constants

    handler = type("Handler", (_Hub,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield handler.asked
        server.shutdown()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the hub's cache as its library leaves it, and forbid the network."""
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    for revision, commit in COMMITS.items():
        repository = folder / "models--someone--small"
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        for name, data in FILES.items():
            if revision == "main" or name.endswith(".json"):
                (repository / "snapshots" / commit / name).write_bytes(data)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def test_only_what_a_checkpoint_needs_is_fetched_and_its_weights_when_they_are_asked_for(asked: list[str]) -> None:
    checkpoint = Checkpoint.find("hf://someone/small")
    assert checkpoint.architecture["hidden_size"] == 16
    assert checkpoint.folder.name == COMMITS["main"]
    assert set(asked) == {"config.json", "preprocessor_config.json"}
    assert [path.read_bytes() for path in checkpoint.weight_files(language="deu")] == [b"weights", b"adapter"]
    assert "run_me.py" not in asked
    assert Checkpoint.find("someone/small", "v2").folder.name == COMMITS["v2"]


def test_a_run_notes_the_commit_that_it_begins_with(asked: list[str]) -> None:
    for revision in ("main", "v2"):
        options = ["model=pretrained", "model.path=someone/small", *([f"model.revision={revision}"] if revision != "main" else [])]
        cfg = with_checkpoint_files(ExperimentConfig.of(compose(options)))
        assert cfg.model["revision"] == cfg.features["revision"] == COMMITS[revision]
        fresh = ExperimentConfig.of(compose(options))
        assert with_checkpoint_files(fresh, cfg.as_dict()).model["revision"] == COMMITS[revision]
    assert "model.safetensors" not in asked


@pytest.mark.parametrize(
    ("name", "revision", "why"),
    [
        ("someone/gated", None, "its owner asks for consent: give it on its page"),
        ("someone/none", None, "it has no such checkpoint, or a private one, for which hf auth login logs in"),
        ("someone/small", "v3", "it has no revision v3"),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_to_do(asked: list[str], name: str, revision: str | None, why: str) -> None:
    command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    with pytest.raises(ConfigError, match=f"could not be fetched from the hub .{why}.*\n.*or fetch it where there is a network: {command}"):
        Checkpoint.find(name, revision)
    assert asked == []


def test_without_a_network_what_was_fetched_before_is_found_in_each_revision(cache: Path) -> None:
    found = Checkpoint.find("hf://someone/small")
    assert found.folder == cache / "models--someone--small/snapshots" / COMMITS["main"]
    assert [path.name for path in found.weight_files()] == ["model.safetensors"]
    half = Checkpoint.find("someone/small", "v2")
    assert half.folder.name == COMMITS["v2"]
    with pytest.raises(ConfigError, match=r"has no model.safetensors .*\n.*network: hf download someone/small --revision v2"):
        half.weight_files("v2")
    for name, revision in (("someone/none", None), ("someone/small", "v3")):
        with pytest.raises(ConfigError, match=f"HF_HUB_OFFLINE is set, and {cache} has no such checkpoint of that revision"):
            Checkpoint.find(name, revision)
