"""How many documents an encoder cuts, on the real MiniLM (256 tokens), and what the report says of it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from made_texts import SENTENCES, needs_minilm

from instar.data.collection import Collection
from instar.encoders import length, of, open_encoder
from instar.encoders.embedding import vectors_of
from instar.errors import ModelError
from instar.upgrade.report import report

MINILM = "all-MiniLM-L6-v2"
pytestmark = needs_minilm
ENDS = pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="needs sentence-transformers")


@pytest.mark.parametrize("source", [MINILM, pytest.param(f"st:{MINILM}", marks=ENDS)])
def test_longer_is_what_is_cut(source: str) -> None:
    """254 words and the two marks fit; what stands behind them changes nothing, and is counted as longer."""
    encoder = open_encoder(source)
    fits, longer = "rain " * 254, "rain " * 254 + "snow"
    assert encoder.tokens([fits, longer, SENTENCES[0]])[:2] == [256, 257]  # type: ignore[attr-defined]
    assert np.array_equal(*encoder.encode([fits, longer]))
    found = length.facts(encoder, [fits, longer, longer, SENTENCES[0]])
    assert list(found.values()) == [256, 4, 2]
    (said,) = length.said({}, found)
    assert said.startswith("50 % of the documents")
    assert "than the new encoder reads (256 tokens)" in said
    assert [s.count("either encoder") for s in length.said(found, found)] == [1]
    assert len(length.said({**found, "of them longer": 1}, found)) == 2
    assert not length.said({**found, "of them longer": 0}, {})


def test_settings_count() -> None:
    short = open_encoder(MINILM, {"max_length": 8, "document_prompt": "one two: {input}"})
    assert length.facts(short, ["rain rain rain", "rain rain rain rain"])["of them longer"] == 1  # 2 marks, 3 of the prompt
    only_queries = open_encoder(MINILM, {"max_length": 8, "prompt": "one two three four: {input}"})
    assert length.facts(only_queries, ["rain rain rain"])["of them longer"] == 0


def test_what_does_not_cut_says_nothing() -> None:
    free = of(lambda texts: np.ones((len(texts), 2)))
    assert length.facts(free, SENTENCES) == {}
    with pytest.raises(ModelError, match="does not count"):
        free.tokens(SENTENCES)  # type: ignore[attr-defined]


def test_the_report_says_it() -> None:
    texts = [f"{' '.join(SENTENCES)} {i} " * (1 + 2 * (i % 4 == 0)) for i in range(120)]
    given = Collection("texts", [str(i) for i in range(120)], texts)
    sides = [vectors_of(given, open_encoder(MINILM, {"layer": layer, "max_length": 128}), cache=False) for layer in (0, 1)]
    made = report(given, *sides, chosen=["no_map"])
    assert sum("25 % of the documents" in c and "either encoder reads (128 tokens)" in c for c in made.cautions) == 1
    assert made.new.facts["longest input in tokens"] == 128
