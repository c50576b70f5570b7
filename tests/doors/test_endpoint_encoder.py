"""Encoders behind an address: real HTTP over loopback, an honest fingerprint, failures named."""

from __future__ import annotations

import hashlib
from typing import Any

import api_server as api
import numpy as np
import pytest
from api_server import serving

from instar.encoders import open_encoder
from instar.errors import ModelError


def vector(text: str, model: str, width: int) -> list[float]:
    seed = int.from_bytes(hashlib.sha256(f"{model} {text}".encode()).digest()[:4])
    return np.random.default_rng(seed).normal(size=width).tolist()


def answers(served: str = "", refuse: str = "") -> Any:
    def reply(handler: api.Handler, body: dict[str, Any]) -> None:
        if refuse and any(refuse in text for text in body["input"]):
            handler.json({"error": {"message": "too long"}}, 400)
            return
        width = body.get("dimensions", 8)
        rows = [{"index": i, "embedding": vector(t, served or body["model"], width)} for i, t in enumerate(body["input"])]
        handler.json({"data": rows[::-1]})

    return reply


def test_vectors_prompts_and_batches() -> None:
    with serving(answers()) as server:
        encoder = open_encoder(f"{server.url}#tiny", {"prompt": "q: {input}", "batch": 2, "concurrency": 2, "dims": 5})
        told: list[tuple[int, int]] = []
        found = encoder.encode(list("abcde"), "query", lambda done, total: told.append((done, total)))
    expected = np.array([vector(f"q: {text}", "tiny", 5) for text in "abcde"])
    assert np.abs(found - expected / np.linalg.norm(expected, axis=1, keepdims=True)).max() < 1e-6
    assert encoder.dim == 5
    assert told[-1] == (5, 5)


def test_the_fingerprint_notices_another_model_under_the_same_name() -> None:
    with serving(answers("weights 1")) as server:
        first = open_encoder(f"{server.url}#tiny")
        assert open_encoder(f"{server.url}#tiny", {"batch": 3, "timeout": 9}).fingerprint == first.fingerprint
        named = open_encoder(f"{server.url}#tiny", {"version": "march"}).fingerprint
        assert open_encoder(f"{server.url}#tiny", {"dims": 4}).fingerprint != first.fingerprint
        server.reply = answers("weights 2")
        assert open_encoder(f"{server.url}#tiny").fingerprint != first.fingerprint
        assert open_encoder(f"{server.url}#tiny", {"version": "march"}).fingerprint == named


def test_failures_are_named() -> None:
    with serving(answers(refuse="bad")) as server:
        encoder = open_encoder(f"{server.url}#tiny", {"retries": 0})
        with pytest.raises(ModelError, match=r"no vector for 'bad text'.*too long"):
            encoder.encode(["good", "bad text", "fine", "well"])
        url = server.url
    with pytest.raises(ModelError, match="refused"):
        open_encoder(f"{url}#tiny", {"retries": 0})
    with pytest.raises(ModelError, match="http or https"):
        open_encoder("http://#tiny")
