"""From names to predictions, and a stored model before and after its recorded updates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instar.doors import opening
from instar.errors import DataError, PlanError, ReceiptError, UnknownNameError
from instar.gate import baseline, reading
from instar.gate.judge import judge

FUNCTIONS = """
def shout(text):
    return text.upper()

def quiet(text, word="x"):
    return text.upper() if word not in text else text
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    rows = [{"id": i, "input": f"{w} here", "label": f"{w} HERE".upper()} for i, w in enumerate(["one", "two", "six", "ten"])]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "old.jsonl").write_text("".join(json.dumps({"id": r["id"], "output": r["label"]}) + "\n" for r in rows))
    return tmp_path


def test_a_function_against_itself_with_other_settings(folder: Path) -> None:
    cases = opening.cases("items.jsonl")
    found = opening.gather("mine.py:shout", "mine.py:quiet", ["same"], settings={"new": {"word": "t"}}, cases=cases)
    assert found.old.outputs == ["ONE HERE", "TWO HERE", "SIX HERE", "TEN HERE"]
    assert found.new is not None
    assert found.new.outputs == ["ONE HERE", "two here", "SIX HERE", "ten here"]
    assert [v.outputs for v in found.again] == [found.old.outputs]
    result = judge(found.old, found.new, again=found.again, task=found.task, cases=found.cases)
    assert set(result.broken_ids) == {"1", "3"}
    assert result.new.name == "mine.py:quiet (word=t)"


def test_a_file_against_a_function(folder: Path) -> None:
    """Predictions of yesterday, without labels of their own, and a version that is run now."""
    found = opening.gather("old.jsonl", "mine.py:quiet", cases=opening.cases("items.jsonl"))
    assert found.new is not None
    result = judge(found.old, found.new, cases=found.cases)
    assert result.items == 4
    assert result.broken_ids == ["2"]  # "six" holds the x that `quiet` leaves alone


def test_a_baseline_brings_its_items_along(folder: Path) -> None:
    first = opening.gather("mine.py:shout", None, ["same"], cases=opening.cases("items.jsonl"))
    baseline.freeze(folder / "base", first.old, first.again, cases=first.cases, task=first.task)
    found = opening.gather("base", "mine.py:quiet")
    assert found.new is not None
    assert found.new.ids == ["0", "1", "2", "3"]
    assert len(found.again) == 1
    assert found.task == first.task


def test_harness_folders() -> None:
    fixture = Path(__file__).parents[1] / "fixtures" / "lm_eval"
    found = opening.gather(str(fixture / "old"), str(fixture / "new"))
    assert found.metric == "score"
    assert found.new is not None
    result = judge(found.old, found.new, metric=found.metric)
    assert result.items == len(found.old)
    assert {s.column for s in result.slices} >= {"task"}


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        (("mine.py:shout", "old.jsonl"), {}, PlanError, "--data FILE"),
        (("old.jsonl", "old.jsonl"), {"settings": {"new": {"batch": 1}}}, PlanError, "takes no settings"),
        (("old.jsonl", "old.jsonl", ["same"]), {}, PlanError, "only read"),
        (("none.jsonl", "old.jsonl"), {}, DataError, "There is no file"),
        (("mine.py", "old.jsonl"), {}, DataError, r"no kind of file that is known.*A version is"),
        (("none.bin", "old.jsonl"), {}, DataError, "does not exist"),
        (("mine.py:shuot", "old.jsonl"), {"data": True}, UnknownNameError, "shout"),
        (("nobodys-model", "old.jsonl"), {"data": True}, UnknownNameError, "all-MiniLM-L6-v2"),
        (("before:base/receipt", "old.jsonl"), {"data": True}, ReceiptError, "NNN-id"),
    ],
)
def test_names_that_lead_nowhere(folder: Path, arguments: tuple, options: dict, error: type[Exception], match: str) -> None:
    cases = opening.cases("items.jsonl") if options.pop("data", False) else None
    with pytest.raises(error, match=match):
        opening.gather(*arguments, **options, cases=cases)


def test_data_that_has_no_name() -> None:
    with pytest.raises(UnknownNameError, match="clinc150"):
        opening.cases("clinc15")
    with pytest.raises(PlanError, match="name=value"):
        opening.pairs(["batch"])


def test_before_and_after_a_receipt(tmp_path: Path) -> None:
    """Two updates of a stored MiniLM: its answers before each, and after, are those that the model gave at that time."""
    import torch

    from instar.data import pretrained
    from instar.gate.predictions import Cases
    from instar.receipt import updating

    model, tokenizer = pretrained.load("all-MiniLM-L6-v2", layers=2)
    tokenizer.save_pretrained(tmp_path)
    texts = ["a red apple", "a fast car", "green pears", "the old truck", "ripe plums", "a small van"]
    labels = ["fruit", "car"] * 3
    cases = Cases("c", [str(i) for i in range(6)], texts, labels, examples=list(zip(texts, labels, strict=True)))
    receipts, vectors = [], []
    model.save_pretrained(tmp_path)
    vectors.append(opening.version_of(str(tmp_path), {}).run(cases, "classification").embeddings)
    for scale in (0.5, 3.0):
        with updating(model, method="scale", settings={"scale": scale}) as update, torch.no_grad():
            model.encoder.layer[0].output.dense.weight.mul_(scale)
            model.encoder.layer[1].output.dense.bias.add_(scale)
        model.save_pretrained(tmp_path)
        receipts.append(update.receipt.record(tmp_path))
        vectors.append(opening.version_of(str(tmp_path), {}).run(cases, "classification").embeddings)

    def said(name: str) -> object:
        return opening.version_of(name, {}).run(cases, "classification").embeddings

    for i, receipt in enumerate(receipts):
        torch.testing.assert_close(said(f"before:{receipt}"), vectors[i], rtol=0, atol=0)
        torch.testing.assert_close(said(f"after:{receipt}"), vectors[i + 1], rtol=0, atol=0)
    assert reading.sha256(tmp_path / "model.safetensors")  # the folder was read only
    found = opening.gather(f"before:{receipts[0]}", f"after:{receipts[1]}", cases=cases)
    assert found.new is not None
    assert judge(found.old, found.new, cases=cases).items == 6
    with pytest.raises(ReceiptError, match="none of the receipts"):
        said(f"before:{tmp_path}/receipts/009-none")
