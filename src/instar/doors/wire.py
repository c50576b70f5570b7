"""One JSON request over HTTP, bounded in time and size: the endpoint's side of the wire is not trusted.

The standard library's timeout is per read, so that a server that sends a byte now and then holds a client for ever; here the
whole exchange has one deadline. Connections are direct: proxies named by the environment are not used.
"""

from __future__ import annotations

import email.utils
import http.client
import io
import json
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from instar.errors import ModelError

LARGEST = 8 * 2**20
"""Bytes of one reply."""
_HOPS = 3
_TRANSIENT = (408, 429, 500, 502, 503, 504)


class FailedError(Exception):
    """A request without an answer.

    Args:
        reason: for people; as long as the server made it, and with whatever it repeats.
        retry: whether the same request may succeed later.
        down: whether it tells against the endpoint rather than against this item.
        refused: whether nobody listens there.
        wait: seconds after which the server wants to be asked again.
    """

    def __init__(self, reason: str, *, retry: bool = False, down: bool = False, refused: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.retry, self.down, self.refused, self.wait = reason, retry, down, refused, wait


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/]*@)?([^\s?#]*)(?:\?[^\s#]*)?")


@dataclass(frozen=True)
class Address:
    """Where an API lives, without what must not be shown."""

    scheme: str
    host: str
    port: int | None
    path: str
    query: str = field(default="", repr=False)
    """Sent with every request, shown nowhere: some services take a key there."""
    login: str = field(default="", repr=False)
    """`user:password` of the address."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an http or https URL. Raises ModelError, whose message repeats no password."""
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if host is None or parts.scheme not in ("http", "https") or not _plain(text):
            raise ModelError("The address of an endpoint must be an http or https URL, such as http://127.0.0.1:8000/v1.")
        path = parts.path.rstrip("/")
        for ending in ("/chat/completions", "/completions", "/embeddings"):
            path = path.removesuffix(ending)
        login = unquote(parts.netloc.rpartition("@")[0])
        return cls(parts.scheme, host, port, path, parts.query, login)

    @property
    def shown(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{f':{self.port}' if self.port else ''}{self.path}"

    @property
    def here(self) -> bool:
        """Whether it is this machine."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def bare(text: str) -> str:
    """A text with its addresses as they may be shown: without login and query, where some services take a password or a key."""
    return _URL.sub(r"\1\2", text)


def ask(address: Address, path: str, body: Any, headers: Mapping[str, str], seconds: float) -> Any:
    """POST `body` as JSON (GET when it is None) to `address` + `path` and return the JSON of the reply.

    Redirects are followed on the same host only, so that the headers, which hold the key, go nowhere else.
    Raises FailedError for everything that can go wrong, after `seconds` at the latest.
    """
    end = time.monotonic() + seconds
    data = None if body is None else json.dumps(body).encode()
    target = address.path + path + (f"?{address.query}" if address.query else "")
    try:
        for _ in range(_HOPS):
            status, reply, told = _exchange(address, target, data, headers, end)
            if status not in (301, 302, 303, 307, 308):
                break
            target = _redirected(address, target, status, told.get("Location") or "")
    except TimeoutError as error:
        raise FailedError(f"no whole answer within {seconds:g} s", retry=True, down=True) from error
    except ConnectionRefusedError as error:
        raise FailedError("connection refused", retry=True, down=True, refused=True) from error
    except (socket.gaierror, UnicodeError) as error:
        raise FailedError(f"there is no host {address.host}", retry=True, down=True, refused=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise FailedError(f"the connection broke ({type(error).__name__}: {error})", retry=True, down=True) from error
    return _read(status, reply, told)


def _exchange(
    address: Address, target: str, data: bytes | None, headers: Mapping[str, str], end: float
) -> tuple[int, bytes, http.client.HTTPMessage]:
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.host, address.port, timeout=_left(end))
    try:
        connection.connect()
        connection.response_class = _response_before(end)
        connection.sock.settimeout(_left(end))
        kinds = {"Content-Type": "application/json"} if data is not None else {}
        connection.request("GET" if data is None else "POST", target, data, {**headers, **kinds, "Connection": "close"})
        response = connection.getresponse()
        reply = response.read(LARGEST + 1)
        if len(reply) > LARGEST:
            raise FailedError(f"the reply is larger than {LARGEST // 2**20} MiB")
        if response.length:
            raise ConnectionError("the reply was cut short")
        return response.status, reply, response.msg
    finally:
        connection.close()


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Reader(io.RawIOBase):
    """Reads a socket with what is left of one deadline; `raw` is the socket's own file, which keeps it open."""

    def __init__(self, raw: Any, sock: socket.socket, end: float) -> None:
        self._raw, self._sock, self._end = raw, sock, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._end))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _response_before(end: float) -> Any:
    class Response(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
            super().__init__(sock, *args, **kwargs)
            self.fp = io.BufferedReader(_Reader(self.fp.detach(), sock, end))

    return Response


def _redirected(address: Address, target: str, status: int, location: str) -> str:
    """The new target of a redirect that stays on the host; the method and the body must stay too."""
    here = f"{address.shown.removesuffix(address.path)}{target}"
    try:
        new = urlsplit(urljoin(here, location))
        same = (new.scheme, new.hostname, new.port) == (address.scheme, address.host, address.port)
    except ValueError:
        same = False
    if status not in (307, 308) or not same or not _plain(location):
        raise FailedError(f"the endpoint redirects (HTTP {status}), so name that address itself: {location}", down=True)
    return new.path + (f"?{new.query}" if new.query else "")


def _plain(url: str) -> bool:
    """Whether it may stand in a request line."""
    return url.isascii() and url.isprintable() and " " not in url


def _read(status: int, reply: bytes, told: http.client.HTTPMessage) -> Any:
    try:
        value = json.loads(reply)
    except (ValueError, RecursionError) as error:
        if 200 <= status < 300:
            raise FailedError(f"the reply is no JSON: {reply.decode(errors='replace')}") from error
        value = None
    if 200 <= status < 300:
        return value
    said = value.get("error", value) if isinstance(value, dict) else reply.decode(errors="replace")
    said = said.get("message", said) if isinstance(said, dict) else said
    reason = f"HTTP {status}: {said}".rstrip(": ")
    transient = status in _TRANSIENT or status >= 500
    raise FailedError(
        reason, retry=transient, down=transient or status in (401, 403, 404), wait=_wait(told.get("Retry-After") or "")
    )


def _wait(text: str) -> float:
    """Seconds of a Retry-After header: a number or a date; 0 for anything else."""
    try:
        return max(float(text), 0.0) if float(text) < 1e9 else 0.0
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return 0.0
