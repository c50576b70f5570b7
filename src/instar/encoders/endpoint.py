"""Encoders behind an address that speaks the OpenAI API: hosted ones, vLLM, llama.cpp, Ollama, text-embeddings-inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instar.doors.asking import Asking
from instar.doors.client import Client
from instar.doors.embedding import embed
from instar.doors.settings import fields, number, optional, setting, template, text, whole
from instar.doors.wire import Address, FailedError
from instar.encoders import base
from instar.errors import ModelError
from instar.interfaces import Floats


@dataclass(frozen=True)
class Settings:
    """What an endpoint is asked with."""

    model: str = setting("", text, "name of the model (or after # in the address)")
    prompt: str = setting("{input}", template, "what is encoded of a query, with {input} for its text (default {input})")
    document_prompt: str = setting("{input}", template, "the same for documents")
    dims: int | None = setting(None, optional(whole(1)), "dimensions that the endpoint is asked for (its field `dimensions`)")
    body: Mapping[str, Any] | None = setting(None, fields, "JSON object of further fields of each request")
    version: str = setting(
        "", text, "your own name for what runs there; it stands for the model in the fingerprint, instead of a sentence's vector"
    )
    batch: int = setting(32, whole(1, 4096), "texts in one request (32)")
    concurrency: int = setting(4, whole(1, 256), "requests at the same time (4)")
    retries: int = setting(3, whole(0, 100), "how often a request is made again after a failure that may pass (3)")
    timeout: float = setting(60.0, number(0.01, 86_400), "seconds for one request (60)")
    key_env: str = setting(
        "", text, "environment variable that holds the key; by default OPENAI_API_KEY, over https or to this machine only"
    )


class Endpoint(base.CheckedEncoder):
    """The vectors that `/embeddings` gives.

    The fingerprint is weak, since weights cannot be seen: address, model, settings, and a sketch of one sentence's vector (see
    `base.sketch`), so that another model under the same name is noticed. Making it asks for that vector.

    Args:
        source: the base URL, with the model after `#`. settings: see `Settings`.

    Raises ModelError for a wrong address, a missing key, an endpoint that does not answer, ShapeError, UnknownNameError.
    """

    def __init__(self, source: str, settings: Mapping[str, Any] | None = None) -> None:
        url, _, model = source.partition("#")
        address = Address.parse(url)
        shown = address.shown + (f"#{model}" if model else "")
        self.settings = asked = base.chosen(Settings, settings, shown)
        self.name = base.called(shown, {k: v for k, v in (settings or {}).items() if k not in ("body", "key_env")})
        self._client = Client.open(address, asked.timeout, asked.key_env)
        told = {"model": asked.model or model, "dimensions": asked.dims}
        self._fields = {**{name: value for name, value in told.items() if value}, **(asked.body or {})}
        probe = self._ask([base.PROBE], None)[0]
        self.dim = len(probe)
        self.fingerprint = base.fingerprint(
            address.shown,
            kind="endpoint",
            fields=self._fields,
            prompt=asked.prompt,
            document_prompt=asked.document_prompt,
            width=self.dim,
            version=asked.version or base.sketch(probe),
        )

    def vectors(self, texts: Sequence[str], kind: base.Kind, progress: base.Progress | None) -> Floats:
        """See `CheckedEncoder.vectors`. Raises ModelError where a single text has no vector."""
        prompt = self.settings.prompt if kind == "query" else self.settings.document_prompt
        return self._ask([prompt.replace("{input}", one) for one in texts], progress)

    def _ask(self, texts: Sequence[str], progress: base.Progress | None) -> Floats:
        asking = Asking(self.name, self.settings.retries, self.settings.concurrency)
        tell = None if progress is None else lambda done, total: progress(done, total)
        found = []
        for one, vector in zip(
            texts, embed(texts, self._fields, self._client, asking, self.settings.batch, tell)[0], strict=True
        ):
            if isinstance(vector, FailedError):
                raise ModelError(f"{self.name} gives no vector for {one[:60]!r}: {vector.reason}.")
            found.append(vector)
        if len(widths := {len(vector) for vector in found}) != 1:
            raise ModelError(f"{self.name} gives vectors of different lengths: {', '.join(map(str, sorted(widths)[:5]))}.")
        return np.stack(found)
