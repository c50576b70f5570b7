"""Collections under an encoder: encoded once, taken from the cache only where everything is the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_texts import SENTENCES, needs_minilm

from instar.data.collection import Collection
from instar.encoders import embedding, of, open_encoder
from instar.encoders.embedding import vectors_of
from instar.errors import DataError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "instar" / "vectors"


def collection(texts: Sequence[str] = SENTENCES, queries: Sequence[str] = ("cats?", "money?")) -> Collection:
    return Collection(
        "made",
        ids=[str(i) for i in range(len(texts))],
        texts=list(texts),
        query_ids=[f"q{i}" for i in range(len(queries))],
        queries=list(queries) or None,
        relevant=[np.array([2 * i, 2 * i + 1]) for i in range(len(queries))] or None,
    )


class Counting:
    """Letters of a text as its vector; counts texts that come in lists."""

    def __init__(self) -> None:
        self.texts = 0

    def __call__(self, texts: list[str], kind: str) -> Any:
        self.texts += len(texts) if len(texts) > 1 else 0
        return [[t.count(c) + 0.1 * (kind == "query") + 0.01 for c in "aeiou"] for t in texts]


@needs_minilm
def test_the_vectors_of_minilm(cache: Path) -> None:
    encoder = open_encoder("all-MiniLM-L6-v2")
    told: list[tuple[int, int]] = []
    found = vectors_of(collection(), encoder, lambda done, total: told.append((done, total)))
    assert found.queries is not None
    assert np.abs(found.documents - encoder.encode(SENTENCES)).max() < 1e-5
    assert np.abs(found.queries - encoder.encode(["cats?", "money?"], "query")).max() < 1e-5
    assert (found.queries @ found.documents.T).argmax(1)[0] in (0, 1)
    assert (found.fingerprint, found.dim, found.name) == (encoder.fingerprint, 384, encoder.name)
    assert (found.document_seconds or 0) > 0
    assert (found.query_seconds or 0) > 0
    assert told == sorted(told)
    assert told[-1] == (10, 10)
    again = vectors_of(collection(), encoder)
    assert np.array_equal(again.documents, found.documents)
    assert again.document_seconds == found.document_seconds  # of when they were made
    assert again.facts.items() >= {"encoded": 0, "cached": 8}.items()


def test_only_what_changed_is_encoded_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_PART", 4)
    function = Counting()
    encoder = of(function)
    first = vectors_of(collection(), encoder)
    assert function.texts == 10
    function.texts = 0
    changed = [*SENTENCES[:7], "A new text."]
    second = vectors_of(collection(changed), encoder)
    assert function.texts == 4  # the second part; the first and the queries are kept
    assert np.array_equal(second.documents[:7], first.documents[:7])
    assert np.array_equal(second.documents, encoder.encode(changed))
    function.texts = 0
    vectors_of(collection(), of(lambda texts: [[len(t), 1.0] for t in texts]))  # another encoder, the same texts
    vectors_of(collection(), encoder, cache=False)
    assert function.texts == 10


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b"x" * 99])
def test_a_damaged_cache_is_made_anew(cache: Path, damage: Any) -> None:
    function = Counting()
    encoder = of(function)
    first = vectors_of(collection(queries=()), encoder)
    assert first.queries is None
    (file,) = cache.rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    function.texts = 0
    again = vectors_of(collection(queries=()), encoder)
    assert function.texts == 8
    assert np.array_equal(again.documents, first.documents)
    function.texts = 0
    vectors_of(collection(queries=()), encoder)
    assert function.texts == 0


def test_a_cache_that_cannot_be_written_and_texts_that_are_not_there(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    assert len(vectors_of(collection(), of(Counting())).documents) == 8
    with pytest.raises(DataError, match="no texts of its documents"):
        vectors_of(Collection("vectors", ids=["a"]), of(Counting()))
