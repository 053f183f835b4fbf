"""Passwords of addresses, and other secrets, are masked in all that is printed, logged, stored or sent.

`masked` is the one place that says what a secret is. `guard_outputs` puts it between this process and its terminal and logs; what is
stored or sent goes through `masked_values`. The whole address is kept for its owner alone, in a file outside of all runs (`keep`), where
`resume=`, `speechtrain sync` and the sender to MLflow find it again (`whole`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, unquote, urlsplit

from speechtrain.files import atomically

MASK = "***"

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"`<>|]+")
_SURELY = r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key)"
_AS_A_WORD = r"(?:[\w.-]*[._-])?(?:access|auth|api|hf|id|refresh|bearer|session)?_?token|(?:[\w.-]*[._-])?(?:sig|signature|credentials?)"
_SYMBOL = re.compile(
    r"(?:.*[._-])?(?:bos|eos|sos|pad|unk|unknown|blank|cls|sep|mask|start|end|space|silence|word|delimiter|size|special)_token",
    re.IGNORECASE,
)
"""Matches keys of tokenizers that name a symbol, such as `pad_token`, and of decoders that count them."""
_SECRET_NAME = re.compile(rf"{_SURELY}|{_AS_A_WORD}", re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"(?<![\w.-])(?P<head>(?P<key>{_SURELY}|{_AS_A_WORD})[\"']?\s*=\s*|(?:{_SURELY})[\"']\s*:\s+|^[ -]*(?:{_SURELY}):[ ]+(?=\S+[ ]*$))"
    r"(?P<value>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s,;&'\"}\])]+)",
    re.IGNORECASE | re.MULTILINE,
)
"""Matches `key=value`, a key and value of JSON, and a line of YAML that has only these; not what somebody says after a colon."""
_KNOWN_FORMS = re.compile(r"\b(?:hf_|ghp_|gho_|github_pat_|glpat-|wandb_v1_|dapi)[A-Za-z0-9_-]{16,}")
_OVERRIDE = re.compile(r"(?P<key>[\w.+~@/-]+=)(?P<value>.*)", re.DOTALL)
_NO_VALUES = ("null", "none", "true", "false", MASK, "???")
_SECRET_VARIABLE = re.compile(r"(?:.*_)?(?:PASSWORD|PASSWD|TOKEN|SECRET|API_KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY)", re.IGNORECASE)
_SHORTEST = 6  # characters of a secret that is looked for wherever it stands; a shorter one may be a word
_KEPT = 200  # addresses
_LOCK_SECONDS = 5.0  # that another process may take to add its addresses

_known: set[str] = set()


def masked(text: str) -> str:
    """Return a text without its secrets: passwords and tokens of addresses, values named as secrets, and secrets that were seen before."""
    text = _masked_where_they_stand(text)
    for secret in _known:
        if secret in text:
            text = text.replace(secret, MASK)
    return text


def masked_values(value: Any) -> Any:
    """Return nested mappings and lists, such as a config, in which texts that hold a secret, or are named as one, are masked."""
    if isinstance(value, Mapping):
        return {key: MASK if _is_secret(key, inner) else masked_values(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked_values(inner) for inner in value]
    return _masked_value(value) if isinstance(value, str) else value


def keep(values: Any) -> Any:
    """Return what `masked_values` does, and keep what was masked, so that `whole` finds it."""
    safe = masked_values(values)
    if safe != values:
        _store(dict(_changes(values, safe)))
    return safe


def whole(text: str) -> str:
    """Return a masked text as it was when it was kept; where that is not known here it stays masked.

    A text that merely holds what was masked stays as it is: a file of somebody else's could otherwise send the secret elsewhere.
    """
    if MASK not in text:
        return text
    kept = _stored()
    override = _OVERRIDE.fullmatch(text)
    return kept.get(text, text) if text in kept or override is None else override["key"] + kept.get(override["value"], override["value"])


def whole_values(values: Any, path: str = "") -> Any:
    """Return a config that this user's own run has stored, in which what was masked is as it was when it was kept.

    Args:
        values: nested mappings and lists.
        path: the dotted path of the values in the config, by which values that are masked because of their key are found.
    """
    if isinstance(values, Mapping):
        return {key: whole_values(inner, f"{path}.{key}" if path else str(key)) for key, inner in values.items()}
    if isinstance(values, (list, tuple)):
        return [whole_values(inner, path) for inner in values]
    if values == MASK:
        return whole(f"{path}={MASK}").removeprefix(f"{path}=")
    return whole(values) if isinstance(values, str) else values


def unguarded_stdout() -> TextIO:
    """Return standard output as it was before `guard_outputs`, for results: in a transcript a secret may be a word as any other."""
    return sys.stdout._stream if isinstance(sys.stdout, _MaskedStream) else sys.stdout


def guard_outputs() -> None:
    """Mask what this process prints, logs and fails with from now on; what it was started with is searched for secrets."""
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.fullmatch(name):
            _learn(value)
        elif "://" in value:
            _masked_value(value)
    for argument in sys.argv[1:]:
        _masked_value(argument.partition("=")[2] or argument)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _MaskedStream):
            setattr(sys, name, _MaskedStream(stream))
    logging.setLogRecordFactory(_MaskedRecord)


class _MaskedStream:
    """Writes to another stream what is left of a text without its secrets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text without its secrets."""
        self._stream.write(masked(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts without their secrets."""
        for line in lines:
            self.write(line)


class _MaskedRecord(logging.LogRecord):
    """A log record whose message and stack trace hold no secrets, whatever writes it down."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = masked("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:  # noqa: N802 # the name that logging calls
        """Return the message without its secrets."""
        return masked(super().getMessage())


def _masked_where_they_stand(text: str) -> str:
    if "://" in text:
        text = _ADDRESS.sub(lambda found: _masked_address(found[0]), text)
    if "=" in text or ":" in text:
        text = _ASSIGNED.sub(_masked_assignment, text)
    return _KNOWN_FORMS.sub(MASK, text)


def _masked_value(text: str) -> str:
    """Mask a text that may be one address as a whole, with blanks and quotes in its password."""
    override = _OVERRIDE.fullmatch(text)
    if override is not None and _ADDRESS.match(override["value"]):
        return override["key"] + _masked_value(override["value"])
    return _masked_where_they_stand(_masked_address(text) if _ADDRESS.match(text) and text.count("://") == 1 else text)


def _masked_assignment(found: re.Match[str]) -> str:
    value = found["value"].strip("'\"").rstrip(":")
    if (
        value.lower() in _NO_VALUES
        or not value
        or _SYMBOL.fullmatch(found["key"] or "")
        or value.startswith("${")
        or (value.isdecimal() and len(value) < _SHORTEST)
    ):
        return found[0]
    _learn(value)
    return found["head"] + found["value"].replace(value, MASK)


def _masked_address(address: str) -> str:
    scheme, _, rest = address.partition("://")
    end = _end_of_user_information(scheme, rest)
    if end > 0:
        user, colon, password = rest[:end].partition(":")
        if colon and password not in ("", MASK):
            _learn(password)
            for part in re.split(r"[@/?#:]", password)[::-1]:  # as libraries name it that take a part of it for the host
                _learn(part)
                _learn(part + re.split(r"[/?#]", rest[end:], maxsplit=1)[0])
            rest = f"{user}:{MASK}{rest[end:]}"
        elif not colon and scheme.lower().endswith(("http", "https")) and len(user) >= 20:  # a token, as Git hosts take it
            _learn(user)
            rest = MASK + rest[end:]
    return f"{scheme}://{rest}"


def _end_of_user_information(scheme: str, rest: str) -> int:
    """Return where the `@` behind user and password stands, -1 without; a password may hold `@`, `/`, `?` and `#` that are not encoded."""
    try:
        location = urlsplit(f"{scheme}://{rest}").netloc
    except ValueError:  # as with a single bracket
        location = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" not in location and ("@" not in rest or ":" not in location or re.fullmatch(r"(\[.*\]|[^:]*):\d+", location)):
        return -1 if scheme.lower().startswith(("http", "ws", "ftp", "file", "s3", "gs")) or ":" not in location else rest.rfind("@")
    if "@" in location and ":" not in location.rpartition("@")[0]:
        return location.rfind("@")
    before_query = rest[: rest.rfind("?")] if "?" in rest else rest
    return before_query.rfind("@") if "@" in before_query else rest.rfind("@")


def _is_secret(key: object, value: object) -> bool:
    if not isinstance(value, str) or value.lower() in _NO_VALUES or not value:
        return False
    if not _SECRET_NAME.fullmatch(str(key)) or _SYMBOL.fullmatch(str(key)):
        return False
    _learn(value)
    return True


def _learn(secret: str) -> None:
    """Mask a secret wherever it stands from now on; a plain word or number only where it is named, for paths and texts hold it too."""
    is_word_or_number = (secret.isalpha() and secret[1:].islower()) or secret.isdecimal()
    if len(secret) >= _SHORTEST and secret.strip("*") and not is_word_or_number:
        _known.update((secret, unquote(secret), quote(secret, safe="")))


def _changes(values: Any, safe: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """Yield the texts that were masked, with what they were; those that were masked because of their key as `key=value`."""
    if isinstance(values, Mapping):
        for key, inner in values.items():
            if key != "override_dirname":  # all that was typed, in one text
                yield from _changes(inner, safe[key], f"{path}.{key}" if path else str(key))
    elif isinstance(values, (list, tuple)):
        for inner, safe_inner in zip(values, safe, strict=True):
            yield from _changes(inner, safe_inner, path)
    elif isinstance(values, str) and values != safe:
        yield (safe, values) if safe != MASK else (f"{path}={MASK}", f"{path}={values}")


def owner_key() -> bytes | None:
    """Return the 32 random bytes, readable for this user alone, with which the user's runs are signed; None: there is no place for them."""
    with contextlib.suppress(OSError, RuntimeError):
        path = state_folder() / "key"
        if not path.is_file():
            from filelock import FileLock  # takes a tenth of a second, which only the first run waits for

            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS):  # of two first runs that start together one makes the key
                if not path.is_file():
                    with atomically(path) as temporary:
                        temporary.touch(0o600)
                        temporary.write_bytes(secrets.token_bytes(32))
        return path.read_bytes()
    return None


def state_folder() -> Path:
    """Return the folder for what is kept for this user, outside of all runs."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "speechtrain"


def _store_file() -> Path:
    return state_folder() / "addresses.json"


def _stored() -> dict[str, str]:
    try:
        content = json.loads(_store_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return {str(safe): str(text) for safe, text in content.items()} if isinstance(content, dict) else {}


def _store(changes: Mapping[str, str]) -> None:
    """Add texts to the file of their owner; where there is no place for it, they are asked for again."""
    stored = _stored()
    if all(stored.get(safe) == text for safe, text in changes.items()):
        return
    from filelock import FileLock  # takes a tenth of a second, which most commands need not wait for

    with contextlib.suppress(OSError, RuntimeError):
        path = _store_file()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS):  # runs that start together keep what each of them has
            fresh = {**{safe: text for safe, text in _stored().items() if safe not in changes}, **changes}
            with atomically(path) as temporary:
                temporary.touch(0o600)
                temporary.write_text(json.dumps(dict(list(fresh.items())[-_KEPT:])), encoding="utf-8")
