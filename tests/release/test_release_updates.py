"""What `instar adapt` and `instar edit` write: another version, its receipt, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from instar import release
from instar.adapters import LoRA
from instar.compat.ensemble import Ensemble
from instar.data import pretrained
from instar.editing.memit import MEMIT
from instar.errors import AdapterError, DataError, EditError, MissingExtraError, OutputError
from instar.interfaces import Fact
from instar.receipt import fingerprint, history
from instar.release import adapting, edits

FACT = Fact("The capital of France is", "France", "Lyon", "Paris", ["France's capital is"], ["The Louvre stands in"])


def tokenizer_of(name: str) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(pretrained.folder(name))
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama of random weights with a real tokenizer."""
    tokenizer = tokenizer_of("SmolLM2-135M-Instruct")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, vocab_size=len(tokenizer)
    )
    out = tmp_path_factory.mktemp("models") / "source"
    transformers.LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"number {i}", "target": f"the answer is {i % 3}"} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_an_adapted_version_has_learnt_and_goes_back_to_the_bit(source: Path, pairs: Path, tmp_path: Path) -> None:
    found = adapting.adapt(source, str(pairs), LoRA(r=4), tmp_path / "next", steps=40, batch=8, length=32, gated=False)
    assert found.after["nll"] < found.before["nll"] - 0.05
    assert (found.folder / "adapter" / "adapter_config.json").is_file()
    assert found.receipt.base == fingerprint(source)
    assert fingerprint(found.folder) == found.receipt.after
    assert all(".q_proj." in c.name or ".v_proj." in c.name for c in found.receipt.changes)
    assert not found.receipt.structural
    assert found.kept["same next token"] < 1
    model, _ = pretrained.load(found.folder)
    assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    release.undo(found.folder)
    assert fingerprint(found.folder) == fingerprint(source)


def test_a_new_base_keeps_what_the_old_version_said(source: Path, pairs: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 20, "batch": 8, "length": 32}
    old = adapting.adapt(source, str(pairs), LoRA(r=4), tmp_path / "old", gated=False, **settings)
    base, tokenizer = pretrained.load(source, "causal")
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * parameter.std())
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    found = adapting.adapt(tmp_path / "base", str(pairs), LoRA(r=4), tmp_path / "next", like=old.folder, **settings)
    assert found.gate is not None
    assert found.receipt.settings["updater"] == "Muscle"
    assert (found.folder / "adapter" / "adapter_config.json").is_file()
    assert str(old.folder) in (found.folder / "gate" / "result.json").read_text()
    release.undo(found.folder)
    assert fingerprint(found.folder) == fingerprint(tmp_path / "base")
    with pytest.raises(AdapterError, match="3 passes"):
        adapting.adapt(
            tmp_path / "base", str(pairs), LoRA(r=4), tmp_path / "more", like=old.folder, updater=Ensemble(), **settings
        )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT of random weights with a real tokenizer, and no head."""
    tokenizer = tokenizer_of("all-MiniLM-L6-v2")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=len(tokenizer)
    )
    out = tmp_path_factory.mktemp("models") / "encoder"
    transformers.BertModel(config).to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture
def sorts(tmp_path: Path) -> Path:
    path = tmp_path / "sorts.csv"
    words = {"fruit": ("apple", "pear", "plum", "fig"), "tool": ("saw", "hammer", "drill", "file")}
    rows = [f"{kind} number {i} is a {word},{label}" for label, kinds in words.items() for word in kinds for i in range(20)
            for kind in ("item", "thing")]  # fmt: skip
    path.write_text("\n".join(["text,label", *rows]))
    return path


def test_an_encoder_gets_a_head_and_goes_back_to_the_bit(encoder: Path, sorts: Path, tmp_path: Path) -> None:
    found = adapting.adapt(encoder, str(sorts), LoRA(r=4, lr=5e-3), tmp_path / "next", steps=150, batch=16, length=16)
    assert found.after["accuracy"] > 0.95
    assert 0 < found.before["accuracy"] < 1
    assert found.kept["cosine"] < 1
    model = transformers.AutoModelForSequenceClassification.from_pretrained(found.folder, dtype="auto").eval()
    assert model.dtype == torch.bfloat16
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.folder)
    with torch.no_grad():
        answer = model(**tokenizer("item number 3 is a hammer", return_tensors="pt")).logits.argmax()
    assert model.config.id2label[int(answer)] == "tool"
    changed = {change.name for change in found.receipt.changes}
    assert {"classifier.weight", "classifier.bias"} <= changed
    assert all(("classifier" in name) or ("pooler" in name) or (".query." in name) or (".value." in name) for name in changed)
    assert found.receipt.moved["embeddings.word_embeddings.weight"] == "bert.embeddings.word_embeddings.weight"
    assert found.gate is not None
    assert (found.folder / "gate" / "page.html").is_file()
    again = adapting.adapt(found.folder, str(sorts), LoRA(r=4), tmp_path / "again", steps=1, batch=16, length=16, gated=False)
    assert again.before["accuracy"] > 0.95  # its head is of these classes and stays
    assert not again.receipt.structural
    release.undo(found.folder)
    assert fingerprint(found.folder) == fingerprint(encoder)
    assert json.loads((found.folder / "config.json").read_text())["architectures"] == ["BertModel"]


def test_a_head_for_other_classes_is_new_and_the_way_back_has_the_old_names(encoder: Path, sorts: Path, tmp_path: Path) -> None:
    """As many classes, so no tensor changes its shape; but what they mean does."""
    settings: dict[str, Any] = {"steps": 1, "batch": 16, "length": 16, "gated": False}
    first = adapting.adapt(encoder, str(sorts), LoRA(r=4), tmp_path / "first", **settings).folder
    others = tmp_path / "others.csv"
    others.write_text(sorts.read_text().replace(",fruit", ",day").replace(",tool", ",night"))
    found = adapting.adapt(first, str(others), LoRA(r=4), tmp_path / "second", **settings)
    assert {"classifier.weight"} <= {change.name for change in found.receipt.changes}
    assert set(json.loads((found.folder / "config.json").read_text())["id2label"].values()) == {"day", "night"}
    release.undo(found.folder)
    assert fingerprint(found.folder) == fingerprint(first)
    assert set(json.loads((found.folder / "config.json").read_text())["id2label"].values()) == {"fruit", "tool"}


def test_an_edited_version_says_the_fact_and_goes_back_to_the_bit(source: Path, tmp_path: Path) -> None:
    editor = MEMIT(layers=[0, 1], prefixes=0, steps=20, clamp=20.0)
    found = edits.edit(source, [FACT], editor, tmp_path / "next", texts=["Some text of other things. " * 20], gated=False)
    assert found.receipt.base == fingerprint(source)
    assert {c.name.split(".")[2] for c in found.receipt.changes} == {"0", "1"}
    assert len(history(found.folder)) == 1
    assert {"efficacy", "generalisation", "specificity", "fluency", "perplexity", "drift"} <= found.after.keys()
    assert found.after["drift"] > 0
    release.undo(found.folder)
    assert fingerprint(found.folder) == fingerprint(source)


def test_what_an_edit_is_asked() -> None:
    found = edits.cases([FACT, Fact("a b is", "b", "c")])
    kinds = found.columns["kind"]
    assert found.labels is not None
    assert found.choices is not None
    assert dict(zip(kinds, found.labels, strict=True)) | {"other": ""} == {
        "fact": "Lyon",
        "paraphrase": "Lyon",
        "neighbour": "Paris",
        "other": "",
    }
    assert all(label in choices for label, choices in zip(found.labels, found.choices, strict=True))


def test_nothing_is_written_where_something_is_wrong(source: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "next"
    with pytest.raises(DataError, match="a step takes 64"):
        adapting.adapt(source, str(pairs), LoRA(), out, batch=64)
    with pytest.raises(EditError, match="is not in its prompt"):
        edits.edit(source, [Fact("a is", "b", "c")], MEMIT(), out)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(OutputError, match="exists already"):
        adapting.adapt(source, str(pairs), LoRA(), tmp_path / "taken")
    with pytest.raises(OutputError, match="Choose another folder"):  # before any training
        adapting.adapt(source, str(pairs), LoRA(), pairs / "out", monitor=lambda *_: pytest.fail("it trained"))
    one = tmp_path / "one.jsonl"
    one.write_text("\n".join(json.dumps({"prompt": f"number {i}", "target": "always"}) for i in range(60)))
    with pytest.raises(DataError, match="nothing to choose from"):  # what the gate would ask is made before any training too
        adapting.adapt(source, str(one), LoRA(r=4), out, like=source, steps=1, length=16)
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.jsonl", "one.jsonl", "taken"}
