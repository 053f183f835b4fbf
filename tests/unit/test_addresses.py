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
    ("http://me:#PW@h", "http://me:***@h"),
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
    *("tokenizer.pad_token='<pad>'", "the secret: meet me at noon", "Password: forgotten again?", r"C:\data\x", "user:pass"),
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


def test_symbols_of_a_tokenizer_are_no_secrets() -> None:
    symbols = {"pad_token": "<pad>", "unk_token": "[UNK]", "word_delimiter_token": "|", "beam_size_token": "5"}
    assert masked_values({"tokenizer": symbols}) == {"tokenizer": symbols}


def test_a_line_of_yaml_or_json_that_names_a_secret_is_masked() -> None:
    assert masked("tracking:\n  password: hun7er\n  n: 1") == "tracking:\n  password: ***\n  n: 1"
    assert masked('{"password": "hun7er", "n": 1}') == '{"password": "***", "n": 1}'


def test_a_secret_that_is_a_common_word_or_a_number_is_masked_only_where_it_stands_for_itself() -> None:
    assert masked("password=speechtrain n_password=123456") == "password=*** n_password=***"
    assert masked("outputs/speechtrain/123456") == "outputs/speechtrain/123456"


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


def test_a_config_of_ones_own_run_has_its_secrets_again_also_those_that_its_keys_name() -> None:
    config = {
        "data": {"url": "http://me:hun7er@h/", "password": "hun7er", "n": 3},
        "tracking": {"x": {"api_key": "abc", "uris": ["redis://:hun7er@h"]}},
    }
    safe = keep(config)
    assert "hun7er" not in json.dumps(safe)
    assert addresses.whole_values(safe) == config
    assert addresses.whole_values({"data": {"api_key": "***"}}) == {"data": {"api_key": "***"}}


def test_results_are_written_as_they_are_though_a_word_of_them_is_a_secret() -> None:
    code = (
        "import sys; from speechtrain.addresses import guard_outputs, unguarded_stdout; guard_outputs();"
        "print('hun7er'); sys.stdout.flush(); unguarded_stdout().write('hun7er')"
    )
    env = {**os.environ, "A_SECRET": "hun7er"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "***\nhun7er"


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
