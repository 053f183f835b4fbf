"""Parts of files that lie in a folder, on an HTTP server or in a bucket of S3, read with retries.

Nothing is held but the part that was asked for. A failure here is the storage's and no utterance's, so `data.on_bad` does not skip it.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import logging
import os
import random
import re
import ssl
import tempfile
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from speechtrain.addresses import masked
from speechtrain.config.extras import require
from speechtrain.errors import UserError, first_line, unwritable
from speechtrain.files import open_regular, user_path

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # s before a request is repeated
_PIECE = 8 << 20  # bytes of a file that are asked for at once where all of it is copied
_LARGEST_COPY = 1 << 34  # bytes of a file that is copied: an index of a hundred million utterances
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses of HTTP behind which the same request may succeed."""
_REDIRECTS = 5
_MOVED = (301, 302, 303, 307, 308)
_SIGNED_SECONDS = 3600
_SIGNED_AGAIN = 600.0  # s after which an address of S3 is signed anew; credentials may have been renewed
_MADE = "set data.root to what python -m speechtrain.shard made, all of which must be there"
_TRUST = "check data.root, or name the file of an authority of your own in SSL_CERT_FILE"
_ERROR_CODE = re.compile(rb"<Code>(\w{1,60})</Code>")
"""Matches what S3 calls an error."""
_LONGEST_ERROR = 4096  # bytes
_OF_CREDENTIALS = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestExpired", "RequestTimeTooSkewed")
"""What S3 calls errors of credentials, some of which it sends with status 400."""
_SIGNED_ROOT = (
    "what stands behind the ? in data.root may have expired, and has to be valid for all files of the folder (a SAS of a container);\n"
    "       a signed address of S3 is that of a single file: set data.root=s3://BUCKET/PATH, whose files are signed one by one"
)
_IN_ADDRESSES = "!#$%&'()*+,/:;=?@[]~"
"""Characters that stay as they are in an address that a server sends on to."""
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18})")


class Part(NamedTuple):
    """A part of a file.

    Attributes:
        name: path of the file in the storage, with slashes.
        offset: where the part begins, in bytes.
        size: bytes of the part.
        file_size: bytes that the file has to have; None: any number.
        checksum: CRC-32 of the part; None: unknown.
    """

    name: str
    offset: int
    size: int
    file_size: int | None = None
    checksum: int | None = None


class StorageError(UserError):
    """What was listed cannot be read from where it lies; the message names the file."""


class _TransientError(Exception):
    """Names a failure behind which the same request may succeed.

    Args:
        reason: what failed.
        pause: s that the server asks to wait; None: it does not say.
    """

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class Storage(ABC):
    """A place with files, some of which are read in parts, by several threads at once and in forked processes."""

    @abstractmethod
    def address(self, name: str) -> str:
        """Return the address of a file, for messages."""

    @abstractmethod
    def read(self, part: Part) -> bytes:
        """Read a part of a file.

        Raises:
            StorageError: it cannot be read, or is not what was listed.
        """

    @abstractmethod
    def local(self, name: str) -> AbstractContextManager[Path]:
        """Yield a local path of a file: the file itself, or a temporary copy of one that lies elsewhere.

        Raises:
            StorageError: it cannot be read, or not be copied.
        """

    def _changed(self, name: str, what: str) -> StorageError:
        fix = "put back the files that the index was made with, or make them and the index anew (python -m speechtrain.shard)"
        return StorageError(f"{self.address(name)}: {what}; it was changed or cut off after its index was made\n    -> {fix}")

    def _check_size(self, part: Part, size: int) -> None:
        if part.file_size is not None and size != part.file_size:
            raise self._changed(part.name, f"has {size} bytes, its index says {part.file_size}")
        if part.offset + part.size > size:
            raise self._changed(part.name, f"has {size} bytes, and the part from {part.offset} to {part.offset + part.size} is asked for")


class Folder(Storage):
    """Reads parts of files that lie in a folder.

    Args:
        root: the folder.
    """

    def __init__(self, root: str) -> None:
        self.root = user_path(root).absolute()

    def address(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.root / name)

    def read(self, part: Part) -> bytes:
        """Read a part of a file."""
        try:
            with open_regular(self.root / part.name) as file:
                self._check_size(part, os.fstat(file.fileno()).st_size)
                content = os.pread(file.fileno(), part.size, part.offset)
        except OSError as error:
            raise self._unreadable(part.name, error) from None
        if len(content) < part.size or (part.checksum is not None and zlib.crc32(content) != part.checksum):
            raise self._changed(part.name, f"holds other bytes from {part.offset} to {part.offset + part.size}")
        return content

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Yield the path of a file, which is local already."""
        try:
            open_regular(self.root / name).close()
        except OSError as error:
            raise self._unreadable(name, error) from None
        yield self.root / name

    def _unreadable(self, name: str, error: OSError) -> StorageError:
        if isinstance(error, FileNotFoundError):
            return StorageError(f"no such file: {self.address(name)}\n    -> {_MADE}")
        return StorageError(
            f"{self.address(name)}: cannot be read ({error.strerror or error})\n    -> mend the disk or the rights of the file"
        )


class HttpServer(Storage):
    """Reads files on an HTTP server that sends parts of them (`Range`).

    Args:
        root: address of their folder, perhaps with a name and a password.
        retries: how often a request that failed is repeated, after 0.1 s, 0.2 s and so on up to 10 s.
        timeout: s without an answer after which a request has failed.
    """

    credentials = "the name and the password in data.root (http://NAME:PASSWORD@HOST/...)"
    """Where the user has named whom the server is to know, for messages."""

    def __init__(self, root: str, *, retries: int, timeout: float) -> None:
        address = urlsplit(root)
        self._root = urlunsplit(address._replace(netloc=address.netloc.rpartition("@")[2], query="", fragment="")).rstrip("/")
        self._query = address.query
        self._login = f"{unquote(address.username)}:{unquote(address.password or '')}" if address.username else None
        self._retries = retries
        self._timeout = timeout
        self._context: ssl.SSLContext | None = None
        self._own = threading.local()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_own": None, "_context": None, "_process": -1}

    def address(self, name: str) -> str:
        """Return the address of a file, without secrets."""
        return f"{self._root}/{quote(name)}"

    def read(self, part: Part) -> bytes:
        """Read a part of a file, again where it fails or comes damaged."""
        return self._repeated(part)[0]

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Yield the path of a temporary copy of a file."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / name
            try:
                self._copy(name, copy)
            except OSError as error:
                raise unwritable(copy, error, "TMPDIR", StorageError) from None
            yield copy

    def _copy(self, name: str, target: Path) -> None:
        """Copy a file to `target`, piece by piece."""
        with target.open("wb") as file:
            total: int | None = None
            while total is None or file.tell() < total:
                size = _PIECE if total is None else min(_PIECE, total - file.tell())
                piece, total = self._repeated(Part(name, file.tell(), size, total), is_last=total is None)
                if total > _LARGEST_COPY:
                    raise StorageError(f"{self.address(name)}: has {total} bytes, and {_LARGEST_COPY} are read at most\n    -> {_MADE}")
                file.write(piece)

    def _repeated(self, part: Part, *, is_last: bool = False) -> tuple[bytes, int]:
        """Return a part of a file and the size of the file; with `is_last` the part may be cut off by the file's end."""
        for attempt in itertools.count():
            try:
                content, total = self._request(part, is_last=is_last)
                if part.checksum is not None and zlib.crc32(content) != part.checksum:
                    raise _TransientError(f"holds other bytes from {part.offset} to {part.offset + part.size}")
            except _TransientError as failure:
                if attempt >= self._retries:
                    if "other bytes" in str(failure):
                        raise self._changed(part.name, str(failure)) from None
                    tried = f"{attempt + 1} requests failed, the last: " if attempt else ""
                    fix = "see that the server runs and can be reached from here; data.retries and data.timeout say how long to try"
                    raise StorageError(f"{self.address(part.name)}: {tried}{failure}\n    -> {fix}") from None
                pause = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)  # noqa: S311 # no secret hangs on it
                log.debug("%s: %s; again in %.1f s", self.address(part.name), failure, pause)
                time.sleep(min(failure.pause, 6 * _LONGEST_PAUSE) if failure.pause is not None else pause)
            else:
                return content, total
        raise AssertionError("unreachable")

    def _request(self, part: Part, *, is_last: bool) -> tuple[bytes, int]:
        """Send one request for a part of a file."""
        url = self._url(part.name)
        for _ in range(_REDIRECTS + 1):
            address = urlsplit(url)
            connection = self._connection(address)
            try:
                response = self._answer(connection, address, part)
                if response.status in _MOVED and (place := response.getheader("Location")):
                    connection.close()
                    url = self._moved(url, place, part.name)
                    continue
                total = self._total(response, part)
                size = max(0, min(part.size, total - part.offset)) if is_last else part.size
                content = response.read(size)
                if not response.isclosed():  # there is more to come, or it was cut off
                    connection.close()
            except ssl.SSLCertVerificationError as error:
                raise StorageError(
                    f"{self.address(part.name)}: its certificate is not trusted ({error.verify_message})\n    -> {_TRUST}"
                ) from None
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                connection.close()
                raise _TransientError(masked(first_line(error))) from None
            except (StorageError, _TransientError):
                connection.close()
                raise
            if len(content) != size:
                raise _TransientError(f"sent {len(content)} bytes of {size}")
            return content, total
        raise StorageError(f"{self.address(part.name)}: the server sends on from one address to the next\n    -> check data.root")

    def _moved(self, url: str, place: str, name: str) -> str:
        """Return the address that a server sends on to."""
        try:
            moved = quote(urljoin(url, place), safe=_IN_ADDRESSES)
            address = urlsplit(moved)
            is_address = address.port != 0
        except ValueError:
            is_address = False
        if not is_address:
            raise StorageError(
                f"{self.address(name)}: the server sends on to what is no address ({masked(place)[:100]!r})\n    -> check data.root"
            )
        if address.scheme not in ("http", "https") or not address.hostname:
            raise StorageError(
                f"{self.address(name)}: leads to {address.scheme}://{address.hostname}, which cannot be read\n    -> check data.root"
            )
        if address.scheme == "http" and urlsplit(url).scheme == "https":
            fix = "set data.root to an address that stays with https"
            raise StorageError(f"{self.address(name)}: the server sends on to {address.hostname} without encryption (http)\n    -> {fix}")
        return moved

    def _answer(self, connection: http.client.HTTPConnection, address: SplitResult, part: Part) -> http.client.HTTPResponse:
        """Return the answer to a request, its body still to be read."""
        headers = {"Range": f"bytes={part.offset}-{part.offset + part.size - 1}", "User-Agent": "speechtrain"}
        if self._login is not None and _origin(address) == _origin(urlsplit(self._root)):
            headers["Authorization"] = f"Basic {base64.b64encode(self._login.encode()).decode()}"
        target = urlunsplit(("", "", address.path or "/", address.query, ""))
        is_open = connection.sock is not None
        try:
            connection.request("GET", target, headers=headers)
            return connection.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            if not is_open:
                raise
        connection.close()  # the server may have closed what was idle
        connection.request("GET", target, headers=headers)
        return connection.getresponse()

    def _connection(self, address: SplitResult) -> http.client.HTTPConnection:
        """Return the connection of this thread to a server."""
        if self._process != os.getpid():  # a forked process has the sockets of the other one, too
            self._own, self._process = threading.local(), os.getpid()
        connections: dict[str, http.client.HTTPConnection] = vars(self._own)
        key, host = str(_origin(address)), address.hostname or ""
        if key not in connections:
            if address.scheme == "https":
                self._context = self._context or ssl.create_default_context()
                connections[key] = http.client.HTTPSConnection(host, address.port, timeout=self._timeout, context=self._context)
            else:
                connections[key] = http.client.HTTPConnection(host, address.port, timeout=self._timeout)
        return connections[key]

    def _total(self, response: http.client.HTTPResponse, part: Part) -> int:
        """Return the size of the file that a response is a part of."""
        status = response.status
        if status in _TEMPORARY:
            wait = response.getheader("Retry-After", "")
            reason = f"the server answered {status} {response.reason or ''}".rstrip()
            raise _TransientError(reason, float(wait) if wait.isdecimal() else None)
        found = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", ""))
        if status == 206 and found is not None and found[1] is not None and int(found[1]) == part.offset:
            self._check_size(part if part.file_size is not None else part._replace(size=0), int(found[2]))
            return int(found[2])
        if status == 416:
            if part.file_size is None and found is not None and int(found[2]) == 0:
                return 0
            raise self._changed(part.name, f"does not reach from {part.offset} to {part.offset + part.size} bytes")
        code = _ERROR_CODE.search(response.read(_LONGEST_ERROR)) if status != 200 else None
        answer = ", ".join(filter(None, (f"{status} {response.reason or ''}".strip(), code and code[1].decode())))
        raise StorageError(f"{self.address(part.name)}: {self._refusal(status, answer, code[1].decode() if code else '')}")

    def _refusal(self, status: int, answer: str, code: str) -> str:
        """Say why a response is of no use, and what to do."""
        if status in (200, 206):
            fix = "serve the files with a server that does (nginx, Apache, Caddy, an object store)"
            return f"the server does not send parts of files (it ignores the header Range)\n    -> {fix}"
        if status in (401, 403) or code in _OF_CREDENTIALS:
            fix = _SIGNED_ROOT if self._query else f"check {self.credentials}"
            return f"the server refuses to show it ({answer})\n    -> {fix}"
        if status in (404, 410):
            return f"there is no such file ({answer})\n    -> {_MADE}"
        return f"the server answered {answer}\n    -> check data.root"

    def _url(self, name: str) -> str:
        """Return the address of a request for a file."""
        return f"{self.address(name)}{'?' if self._query else ''}{self._query}"


class Bucket(HttpServer):
    """Reads files in a bucket of S3 over HTTP at signed addresses; where there are no credentials, at unsigned ones.

    Args:
        root: `s3://BUCKET/PATH`.
        retries, timeout: see `HttpServer`.

    Raises:
        UserError: boto3 is not installed.
    """

    credentials = "the credentials of S3 (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of the machine)"

    def __init__(self, root: str, *, retries: int, timeout: float) -> None:
        require(f"data.root={root}", ("boto3",))
        super().__init__(root, retries=retries, timeout=timeout)
        address = urlsplit(root)
        self._bucket, self._path = address.netloc, address.path.strip("/")
        self._client: Any = None
        self._lock: threading.Lock | None = None
        self._lock_of = -1
        self._signed: dict[str, tuple[str, float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_client": None, "_signed": {}, "_lock": None}

    def address(self, name: str) -> str:
        """Return the address of a file."""
        return "/".join(filter(None, ("s3:/", self._bucket, self._path, name)))

    def _url(self, name: str) -> str:
        """Return the signed address of a file."""
        if self._lock is None or self._lock_of != os.getpid():
            self._lock, self._lock_of = threading.Lock(), os.getpid()
        with self._lock:
            url, made = self._signed.get(name, ("", 0.0))
            if not url or time.monotonic() - made > _SIGNED_AGAIN:
                self._client = self._client or _s3_client(self._bucket, self._timeout)
                key = "/".join(filter(None, (self._path, name)))
                url = _signed(self._client, self._bucket, key)
                if len(self._signed) >= 10_000:
                    self._signed.clear()
                self._signed[name] = (url, time.monotonic())
        return url


def _signed(client: Any, bucket: str, key: str) -> str:
    """Return the signed address of an object."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return str(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=_SIGNED_SECONDS))
    except (BotoCoreError, ClientError, ValueError) as error:  # also where credentials are renewed, which may have expired
        raise StorageError(f"s3://{bucket}: {masked(first_line(error))}\n    -> renew or check {Bucket.credentials}") from None


def _origin(address: SplitResult) -> tuple[str, str, int]:
    """Return what a server is known by: its scheme, host and port."""
    return address.scheme, address.hostname or "", address.port or (443 if address.scheme == "https" else 80)


def _s3_client(bucket: str, timeout: float) -> Any:
    """Make a client that signs addresses of a bucket, wherever it lies."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        session = boto3.session.Session()
        signature = "s3v4" if session.get_credentials() is not None else UNSIGNED
        config = Config(signature_version=signature, connect_timeout=timeout, read_timeout=timeout, retries={"max_attempts": 2})
        client = session.client("s3", config=config)
        try:
            headers = client.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
        except ClientError as error:  # also who may only read objects is told the region
            headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
        except BotoCoreError:  # the request itself will tell
            headers = {}
        region = headers.get("x-amz-bucket-region")
        return client if region in (None, client.meta.region_name) else session.client("s3", config=config, region_name=region)
    except (BotoCoreError, ClientError, ValueError) as error:
        raise StorageError(f"s3://{bucket}: {masked(first_line(error))}\n    -> check {Bucket.credentials}") from None


def is_address(root: str) -> bool:
    """Return whether a root is an address, and no folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", root) is not None


def open_storage(root: str, *, retries: int, timeout: float) -> Storage:
    """Return the storage of a folder, or of an address of HTTP or S3; nothing is read yet."""
    if not is_address(root):
        return Folder(root)
    kind = Bucket if urlsplit(root).scheme.lower() == "s3" else HttpServer
    return kind(root, retries=retries, timeout=timeout)
