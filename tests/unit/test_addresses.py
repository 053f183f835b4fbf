"""Secrets are masked wherever they stand, and kept for their owner alone."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from speechtrain import addresses
from speechtrain.addresses import keep, masked, masked_values, whole
from speechtrain.tracking.mlflow.spool import Spool

ADDRESSES = [
    ("postgresql+psycopg://me:PW@db/x", "postgresql+psycopg://me:***@db/x"),
    ("http://:PW@h", "http://:***@h"),
    ("redis://:PW@h:6379/0", "redis://:***@h:6379/0"),
    ("postgresql://me:PW@ss@host/db", "postgresql://me:***@host/db"),
    ("postgresql://me:PW/ss@host/db", "postgresql://me:***@host/db"),
    ("postgresql://me:12/PW@host/db", "postgresql://me:***@host/db"),
    ("postgresql://me:PW?#@host/db?sslmode=x&sslpassword=PW", "postgresql://me:***@host/db?sslmode=x&sslpassword=***"),
    ("mysql://me:PW@[::1]:3306/db?ssl_password=PW", "mysql://me:***@[::1]:3306/db?ssl_password=***"),
    ("http://h/?token=PW&x=1", "http://h/?token=***&x=1"),
    ("https://PWPWPWPWPWPWPWPWPWPWPW@github.com/a/b", "https://***@github.com/a/b"),
]
NO_SECRETS = [
    *("http://h:8080/a@b", "https://host/pkg@1.2", "s3://bucket/x@y", "grpc://h:13000", "postgresql://me@host/db", "sqlite:////a/b.db"),
    *("http://[::1]:80/a@b", "tokenizer=char decoder.beam_size_token=5", "unknown token: x", "password=null", "password=${oc.env:PW}"),
]


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_known", set())


@pytest.mark.parametrize(("address", "safe"), ADDRESSES)
def test_the_password_of_an_address_is_masked_alone_in_a_text_and_as_a_value(address: str, safe: str) -> None:
    address = address.replace("PW", "hun7er")
    assert masked(address) == safe
    assert masked(f"cannot use '{address}' ({address})") == f"cannot use '{safe}' ({safe})"
    assert masked_values({"a": [address], "b": f"key={address}"}) == {"a": [safe], "b": f"key={safe}"}
    assert masked(safe) == safe


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert masked(text) == text
    assert masked_values(text) == text


def test_values_that_are_named_as_secrets_and_known_forms_of_tokens_are_masked() -> None:
    assert masked_values({"api_key": "abc", "n": {"hf_token": "x", "password": None, "tokens": "a"}}) == {
        "api_key": "***",
        "n": {"hf_token": "***", "password": None, "tokens": "a"},
    }
    assert masked("tracking.wandb.api_key=abc model=x password='a b'") == "tracking.wandb.api_key=*** model=x password='***'"
    assert masked("hf_abcdefghijklmnopqrst") == "***"


def test_a_password_that_was_seen_is_masked_in_what_libraries_say_of_it() -> None:
    masked("postgresql://me:hun7er/@hun7er two@db/x")
    assert "hun7er" not in masked("cannot resolve host 'hun7er two@db', or hun7er%2F%40hun7er%20two, or hun7er")


def test_all_outputs_of_a_command_are_masked() -> None:
    code = (
        "import logging, sys, warnings; from speechtrain.addresses import guard_outputs; guard_outputs(); logging.basicConfig();"
        "from speechtrain.console import console; print(sys.argv[1]); console.print('key', sys.argv[1]); logging.error('no %s', sys.argv[1]);"  # noqa: E501
        "sys.stderr.writelines(['hun7er-1', 'of-the-environment']); warnings.warn(sys.argv[1]); raise ValueError('at ' + sys.argv[1])"
    )
    command = [sys.executable, "-c", code, "http://:hun7er-1@h"]
    env = {**os.environ, "SOME_API_KEY": "of-the-environment"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    said = done.stdout + done.stderr
    assert (said.count("http://:***@h"), "hun7er" in said, "of-the-environment" in said) == (5, False, False), said


def test_a_log_file_has_no_secrets_in_messages_and_stack_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = logging.getLogRecordFactory()
    monkeypatch.setattr(sys, "argv", ["x"])
    try:
        addresses.guard_outputs()
        handler = logging.FileHandler(tmp_path / "log")
        log = logging.getLogger("of this test")
        log.addHandler(handler)
        try:
            raise ValueError("at redis://:hun7er@h")
        except ValueError:
            log.exception("no %s", "redis://:hun7er@h")
    finally:
        logging.setLogRecordFactory(factory)
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            setattr(sys, name, getattr(stream, "_stream", stream))
    said = (tmp_path / "log").read_text()
    assert (said.count("redis://:***@h") >= 2, "hun7er" in said) == (True, False)


def test_an_address_is_kept_for_its_owner_alone_and_found_only_as_a_whole() -> None:
    given = {"uri": "http://me:hun7er@h/", "other": 3, "typed": ["tracking.mlflow.tracking_uri=http://me:hun7er@h/"]}
    assert "hun7er" not in json.dumps(keep(given))
    assert whole("http://me:***@h/") == "http://me:hun7er@h/"
    assert whole("a.b=http://me:***@h/") == "a.b=http://me:hun7er@h/"
    assert whole("http://elsewhere/?x=http://me:***@h/") == "http://elsewhere/?x=http://me:***@h/"
    assert whole("http://me:***@other/") == "http://me:***@other/"
    file = Path(os.environ["XDG_STATE_HOME"]) / "speechtrain" / "addresses.json"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent)] == [0o600, 0o700]


def test_where_nothing_can_be_kept_all_is_masked_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    assert keep("http://me:hun7er@h/") == "http://me:***@h/"
    assert whole("http://me:***@h/") == "http://me:***@h/"


def test_what_waits_to_be_sent_is_its_owners_and_holds_no_secret(tmp_path: Path) -> None:
    spool = Spool.new(tmp_path)
    spool.append({"call": "open", "uri": "http://me:hun7er@h/", "tags": {"a": "redis://:hun7er@h"}, "folder": "/x/token=3"})
    assert "hun7er" not in spool.path.read_text()
    assert next(spool.read(0))[0]["folder"] == "/x/token=3"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (spool.path, spool.path.parent)] == [0o600, 0o700]
