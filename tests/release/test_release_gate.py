"""A new version is held against the one before, on items that need no download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from instar import release
from instar.data import pretrained
from instar.data.topics import topics
from instar.errors import DataError, MissingExtraError
from instar.receipt import updating
from instar.release import cases, gating


def test_continuations_hold_the_right_one_once() -> None:
    found = cases.continuations(topics(), 50, seed=1)
    assert found.choices is not None
    assert found.labels is not None
    texts = dict(zip(topics().ids, topics().texts or (), strict=True))
    for name, prompt, right, choices in zip(found.ids, found.inputs, found.labels, found.choices, strict=True):
        assert choices.count(right) == 1
        assert len(set(choices)) == 4
        assert f"{prompt} {right}" in " ".join(texts[name].split())
    assert cases.continuations(topics(), 50, seed=1) == found
    assert cases.continuations(topics(), 50, seed=2).ids != found.ids


def test_searched_documents_hold_the_answers() -> None:
    found = cases.search(topics(), 50, seed=0)
    known = {name for name, _ in found.documents}
    assert found.labels is not None
    assert all(known.issuperset(label) for label in found.labels)


def test_classes_are_for_the_owner_to_say(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(DataError, match="Give --data"):
        cases.of(tmp_path)


def test_a_ruined_version_fails_and_the_same_one_passes(tmp_path: Path) -> None:
    try:
        folder = pretrained.folder("all-MiniLM-L6-v2")
    except MissingExtraError as error:
        pytest.skip(str(error))
    model, _ = pretrained.load(folder)
    name = "embeddings.word_embeddings.weight"
    with updating(model, method="ruined", changes=[name]) as update, torch.no_grad():
        model.get_parameter(name).normal_(generator=torch.Generator().manual_seed(0))
    asked = cases.search(topics(), 40, seed=0, documents=120)
    after = release.write(model, tmp_path / "next", source=folder, receipts=[update.receipt])
    result = gating.gate(folder, after, asked, settings={"batch": 32})
    assert result.decision == "fail"
    assert {p.name for p in (after / "gate").iterdir()} == {"old.jsonl", "new.jsonl", "result.json", "page.html"}
    release.undo(after)
    assert gating.gate(folder, after, asked).decision != "fail"


def test_large_models_in_half_precision_are_asked_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        model, tokenizer = pretrained.load("all-MiniLM-L6-v2", layers=1)
    except MissingExtraError as error:
        pytest.skip(str(error))
    model.bfloat16().save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    asked = cases.search(topics(), 20, seed=0, documents=40)
    kinds = {}
    for large in (gating.LARGE, 0):
        monkeypatch.setattr(gating, "LARGE", large)
        found = tmp_path / f"found{large}"
        assert gating.gate(tmp_path / "half", tmp_path / "half", asked, folder=found).decision != "fail"
        said = json.loads((found / "gate" / "result.json").read_text())
        kinds[large] = json.dumps(said).count("bfloat16")
    assert kinds[0] > 0
    assert kinds[1 << 30] == 0
