"""Asks one endpoint with its key, and keeps the key out of everything that people or files get to see."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from instar.doors import wire
from instar.doors.wire import Address, FailedError
from instar.errors import ModelError
from instar.report.units import printable

_DEFAULT_KEY = "OPENAI_API_KEY"
_SHORTEST_SECRET = 6
"""Local servers are given keys such as 'none'; to strike those from messages would garble them."""
_LONGEST = 240
"""Characters of a reason or a name that a server gives."""

Read = TypeVar("Read")


@dataclass(frozen=True)
class Client:
    """One endpoint, how it is authenticated, and how long one answer may take."""

    address: Address
    seconds: float
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def open(cls, address: Address, seconds: float, key_env: str = "") -> Client:
        """A client with the key of the environment variable `key_env`, or with the default one.

        The default key goes over https or to this machine only: it may belong to another service than the one that is asked.
        Raises ModelError when the named variable is not set, or holds what no header can carry.
        """
        if key_env and not os.environ.get(key_env):
            raise ModelError(f"key_env={key_env}: that environment variable is not set.")
        asked = _secrets(address.query, *(value for _, value in parse_qsl(address.query)))
        if address.login:
            encoded = base64.b64encode(address.login.encode()).decode()
            secrets = _secrets(address.login, encoded, address.login.partition(":")[2], *asked)
            return cls(address, seconds, {"Authorization": f"Basic {encoded}"}, secrets)
        safe = address.scheme == "https" or address.here
        key = os.environ.get(key_env or _DEFAULT_KEY, "").strip() if key_env or safe else ""
        if not key:
            return cls(address, seconds, secrets=asked)
        if not (key.isascii() and key.isprintable()):
            raise ModelError(f"The key in {key_env or _DEFAULT_KEY} has characters that no HTTP header can carry.")
        return cls(address, seconds, {"Authorization": f"Bearer {key}"}, _secrets(key, *asked))

    def ask(self, path: str, body: Any, read: Callable[[Any], Read]) -> Read:
        """What `read` makes of the reply to `body`. Raises FailedError, whose reason is short and holds no secret."""
        try:
            return read(wire.ask(self.address, path, body, self.headers, self.seconds))
        except FailedError as error:
            error.reason = self.shown(error.reason)
            raise

    def redact(self, text: str) -> str:
        """Text of the server without the secrets that it may repeat."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text

    def shown(self, text: str) -> str:
        """The same, short and on one line. It is cut last: half a secret would be found by nobody."""
        return printable(self.redact(text)[:_LONGEST])


def _secrets(*found: str) -> tuple[str, ...]:
    return tuple(sorted((f for f in found if len(f) >= _SHORTEST_SECRET), key=len, reverse=True))
