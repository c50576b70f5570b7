"""How many documents an encoder cuts, on the real MiniLM (256 tokens), and what the report says of it."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
import transformers
from made_texts import SENTENCES, needs_minilm

from instar.data import pretrained
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


@pytest.mark.parametrize(
    ("kind", "takes"), [("Bert", 32), ("Roberta", 32), ("MPNet", 32), ("DistilBert", 34), ("Llama", 64), ("T5Encoder", 64)]
)
def test_no_text_is_longer_than_the_model_takes(kind: str, takes: int) -> None:
    """Of a tokenizer that says nothing of it: tables of positions end, RoBERTa's have two rows before the first."""
    made = pretrained.load(MINILM, "encoder", layers=1)[1]
    tokenizer = copy.deepcopy(made)
    tokenizer.model_max_length = int(1e30)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 32 if kind == "Bert" else 34}
    if kind == "T5Encoder":
        sizes = {"vocab_size": len(tokenizer), "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    elif kind == "DistilBert":
        sizes |= {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    config = getattr(transformers, f"{kind.removesuffix('Encoder')}Config")(**sizes)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    asked, plain = (of(model, tokenizer, settings=settings) for settings in ({"max_length": 64}, {}))
    assert asked.longest_input == takes  # type: ignore[attr-defined]
    assert plain.longest_input == {"T5Encoder": None, "Llama": 34}.get(kind, takes)  # type: ignore[attr-defined]
    for encoder in (asked, plain):
        assert encoder.encode(["rain " * 100, "rain"]).shape == (2, 16)
