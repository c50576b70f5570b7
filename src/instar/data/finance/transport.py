"""How bytes come in: from files, from recordings, and, only where it is allowed, from the network, politely."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from instar import files
from instar.errors import DataError

LARGEST = 64 * 1024 * 1024
"""Bytes of one response; more is no page of news."""
_AGENT = "instar-finance (a reader of feeds; see the owner of this configuration)"
_AGAIN = {429, 500, 502, 503, 504}
_TIMEOUT = 30.0


@dataclass(frozen=True)
class Response:
    """What an address answered. `status` 304: as before, with no body."""

    url: str
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""

    @property
    def good(self) -> bool:
        """Whether it has a content."""
        return 200 <= self.status < 300 and bool(self.body)


class FetchError(DataError):
    """An address that does not answer as hoped. It stops this address, never the others."""


class Transport(Protocol):
    """Anything that answers addresses."""

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """The answer, of any status. Raises FetchError, and OSError where no answer came."""
        ...


class Offline:
    """No network: the default."""

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """Raises FetchError."""
        raise FetchError(
            f"{url} was not asked: the network is off. Allow it with --network, or answer from recordings (--replay)."
        )


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Redirects lead to http and https alone: not to ftp, which urllib would follow."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise FetchError(f"{req.full_url} leads to {newurl[:80]}, which is no address of http or https.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Network:
    """HTTP and HTTPS with the standard library; redirects are followed to these two alone, and a body is read up to a limit.

    robots.txt is not read: which addresses may be asked, and how often, is for who writes the configuration to find out.
    """

    def __init__(self, largest: int = LARGEST) -> None:
        self.largest = largest
        self._opener = urllib.request.build_opener(_WebOnly)

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """See `Transport.get`."""
        if urlsplit(url).scheme not in ("http", "https"):
            raise FetchError(f"{url} is no address of http or https.")
        asked = urllib.request.Request(url, headers={"User-Agent": _AGENT, **headers})
        try:
            with self._opener.open(asked, timeout=_TIMEOUT) as answer:
                found = self._read(url, answer.status, dict(answer.headers), answer.read(self.largest + 1))
                if answer.length:  # what Content-Length promised beyond what came: a read up to a limit does not say so
                    raise OSError(f"the answer broke off {answer.length} bytes before its end")
                return found
        except urllib.error.HTTPError as error:
            with error:
                return self._read(url, error.code, dict(error.headers), b"")
        except (http.client.HTTPException, ValueError) as error:  # a piece that broke off, no HTTP, a way to no address
            raise OSError(f"{type(error).__name__}: {error}") from error

    def _read(self, url: str, status: int, headers: Mapping[str, str], body: bytes) -> Response:
        if len(body) > self.largest:
            raise FetchError(f"{url} sends more than {self.largest} bytes; nothing of it was kept.")
        return Response(url, status, body, {name.lower(): value for name, value in headers.items()})


class ReplayTransport:
    """Answers from a folder of recordings: `HASH.body` and `HASH.json` (url, status, headers), HASH the first 32 digits of the
    SHA-256 of the URL.

    An address without a recording is a FetchError, so that nothing is asked by accident.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """The recording; 304 where it has the entity tag that is asked for."""
        body = self.path(url)
        try:
            facts = json.loads(body.with_suffix(".json").read_text("utf-8"))
            found = Response(url, int(facts["status"]), body.read_bytes(), dict(facts["headers"]))
        except OSError as error:
            raise FetchError(f"There is no recording of {url} in {self.folder} ({body.name}).") from error
        except (ValueError, KeyError, TypeError) as error:
            raise FetchError(f"The recording of {url}, {body.with_suffix('.json')}, is damaged: {error}.") from error
        if found.headers.get("etag") and found.headers.get("etag") == headers.get("If-None-Match"):
            return Response(url, 304, b"", found.headers)
        return found

    def record(self, response: Response) -> None:
        """Keep an answer."""
        files.folder(self.folder)
        path = self.path(response.url)
        files.write(path, response.body)
        facts = {"url": response.url, "status": response.status, "headers": dict(response.headers)}
        files.write_json(path.with_suffix(".json"), facts)

    def path(self, url: str) -> Path:
        """Where the body of an address stands."""
        return self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.body"


class Polite:
    """Another transport, not more often than a host likes, and again after errors that pass.

    Args:
        inner: what is asked. per_minute: most requests to one host. tries: of one address, where it answers 429 or 5xx or not
        at
            all; the pause doubles from 1 s to a minute, or is what the host says in Retry-After (an hour at most).
        hosts: when each host may be asked again; several of these that share it keep to the pace together.
        sleep, clock: how time passes.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        per_minute: float = 30,
        tries: int = 4,
        hosts: dict[str, float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if per_minute <= 0 or tries < 1:
            raise DataError(f"per_minute is above 0 and tries at least 1; received {per_minute}, {tries}.")
        self.inner, self.pause, self.tries, self.sleep, self.clock = inner, 60 / per_minute, tries, sleep, clock
        self._next = {} if hosts is None else hosts

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """See `Transport.get`. The last answer, whatever it is, after the last try."""
        host = urlsplit(url).netloc.lower()
        for trial in range(self.tries):
            wait = self._next.get(host, 0.0) - self.clock()
            if wait > 0:
                self.sleep(wait)
            self._next[host] = self.clock() + self.pause
            last = trial == self.tries - 1
            try:
                answer = self.inner.get(url, headers)
            except FetchError:
                raise
            except OSError as error:
                if last:
                    raise FetchError(f"{url} did not answer in {self.tries} tries: {error}.") from error
                self.sleep(min(2.0**trial, 60.0))
                continue
            if answer.status not in _AGAIN or last:
                return answer
            self.sleep(_retry_after(answer.headers.get("retry-after", ""), min(2.0**trial, 60.0)))
        raise AssertionError("the loop returns")


def _retry_after(said: str, otherwise: float) -> float:
    return min(float(said), 3600.0) if said.isdigit() else otherwise
