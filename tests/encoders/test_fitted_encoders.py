"""LSA and bags of words: by their formulas, the same after a save, hostile folders refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_texts import SENTENCES, needs_minilm, needs_sklearn

from instar.data import pretrained
from instar.encoders import open_encoder
from instar.errors import DataError, MissingExtraError, ModelError, ShapeError, UnknownNameError

DOCUMENTS = [f"{a} {b}" for a in SENTENCES for b in SENTENCES if a != b]
FITTED = [
    pytest.param("lsa", {"dims": 5}, marks=needs_sklearn),
    pytest.param("bow", {"dims": 50}, marks=needs_minilm),
]


@pytest.mark.parametrize(("kind", "settings"), FITTED)
def test_a_saved_encoder_gives_the_same_vectors(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    source = f"{kind}:{tmp_path / 'fitted'}"
    first = open_encoder(source, settings, texts=DOCUMENTS)
    again = open_encoder(source)
    assert again.fingerprint == first.fingerprint == open_encoder(kind, settings, texts=DOCUMENTS).fingerprint
    assert np.array_equal(first.encode(SENTENCES), again.encode(SENTENCES))
    assert first.dim == settings["dims"]
    assert open_encoder(kind, settings, texts=DOCUMENTS[:-7]).fingerprint != first.fingerprint
    with pytest.raises(DataError, match="fitted already"):
        open_encoder(source, settings)


@pytest.mark.parametrize(("kind", "settings"), FITTED)
def test_damaged_folders(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    source = f"{kind}:{tmp_path / 'fitted'}"
    open_encoder(source, settings, texts=DOCUMENTS)
    facts, tables = tmp_path / "fitted" / "encoder.json", tmp_path / "fitted" / "model.safetensors"
    good, whole = facts.read_bytes(), tables.read_bytes()
    for bad in (b"{", b"[]", b'{"kind": "other"}', json.dumps({"kind": f"instar-{kind}"}).encode()):
        facts.write_bytes(bad)
        with pytest.raises(ModelError):
            open_encoder(source)
    facts.write_bytes(good)
    tables.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        open_encoder(source)
    tables.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        open_encoder(source)


@needs_sklearn
def test_lsa_by_hand() -> None:
    words = sorted({w.strip(".?,").lower() for d in DOCUMENTS for w in d.split() if len(w.strip(".?,")) > 1})
    counts = np.array([[d.lower().replace(".", "").replace("?", "").split().count(w) for w in words] for d in DOCUMENTS], float)
    idf = np.log((1 + len(DOCUMENTS)) / (1 + (counts > 0).sum(0))) + 1
    weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    left = np.linalg.svd(weights, full_matrices=False)
    expected = left.U[:, :7] * left.S[:7]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = open_encoder("lsa", {"dims": 7}, texts=DOCUMENTS).encode(DOCUMENTS)
    assert np.abs(found @ found.T - expected @ expected.T).max() < 1e-4


@needs_sklearn
def test_lsa_of_unknown_words_is_the_mean_and_bad_fits_are_said() -> None:
    encoder = open_encoder("lsa", {"dims": 5}, texts=DOCUMENTS)
    mean = encoder.encode(DOCUMENTS).mean(0)
    assert np.abs(encoder.encode(["zzz qqq"])[0] - mean / np.linalg.norm(mean)).max() < 1e-5
    with pytest.raises(DataError, match="Set dims lower"):
        open_encoder("lsa", texts=DOCUMENTS)
    with pytest.raises(DataError, match="none are known"):
        open_encoder("lsa")
    with pytest.raises(DataError, match="no word"):
        open_encoder("lsa", {"dims": 1}, texts=["a b", "c d"])
    with pytest.raises(ShapeError, match="dims"):
        open_encoder("lsa", {"dims": 0}, texts=DOCUMENTS)


@needs_minilm
def test_a_bag_of_words_is_a_mean_of_token_vectors() -> None:
    model, tokenizer = pretrained.load("all-MiniLM-L6-v2", "encoder", layers=1)
    table = model.get_input_embeddings().weight.detach().numpy()
    tokens = tokenizer(SENTENCES[0], add_special_tokens=False)["input_ids"]
    plain = table[tokens].mean(0)
    found = open_encoder("bow", {"idf": False}).encode(SENTENCES[:1])[0]
    assert np.abs(found - plain / np.linalg.norm(plain)).max() < 1e-5
    counts = np.array([sum(t in tokenizer(d)["input_ids"] for d in SENTENCES) for t in tokens])
    weighted = (table[tokens] * (np.log(9 / (1 + counts)) + 1)[:, None]).mean(0)
    encoder = open_encoder("bow", texts=SENTENCES)
    assert np.abs(encoder.encode(SENTENCES[:1])[0] - weighted / np.linalg.norm(weighted)).max() < 1e-5
    mixed = encoder.encode(["roof warm the on sleeps cat the"])  # the order of words is not seen
    assert np.abs(mixed - encoder.encode(["the cat sleeps on the warm roof"])).max() < 1e-5
    assert len(encoder.encode(["\N{SNOWMAN}"])) == 1  # an unknown token has a vector too
    with pytest.raises(ModelError, match="no token in text 2"):
        encoder.encode(["snow", "\N{ZERO WIDTH SPACE}"])
    with pytest.raises(DataError, match="idf"):
        open_encoder("bow")
    with pytest.raises(UnknownNameError):
        open_encoder("bow", {"model": "no-such-model"}, texts=SENTENCES)


def test_wordllama_is_held_to_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "wordllama"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "weights" / "l2_supercat_256.safetensors").write_bytes(b"other")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ModelError, match=r"not the pinned file.*pip install"):
        open_encoder("wordllama")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingExtraError, match="wordllama=="):
        open_encoder("wordllama")
