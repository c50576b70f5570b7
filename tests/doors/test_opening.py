"""From names to predictions, and a stored model before and after its recorded updates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from instar.doors import opening
from instar.errors import DataError, InstarError, PlanError, ReceiptError, UnknownNameError
from instar.gate import baseline, reading
from instar.gate.judge import judge
from instar.gate.predictions import Cases
from instar.growth import TokenFormer
from instar.models.decoder import Decoder
from instar.receipt import updating

TEXTS, LABELS = ["a red apple", "a fast car", "green pears", "the old truck", "ripe plums", "a small van"], ["fruit", "car"] * 3
WORDS = Cases("c", [str(i) for i in range(6)], TEXTS, LABELS, examples=list(zip(TEXTS, LABELS, strict=True)))

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


def test_another_answer_beside_the_items_is_never_taken_for_the_versions_own(folder: Path) -> None:
    """The items are a log of what once was answered: kept and read back, a version still says what it said."""
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    log = [{**row, "output": "nothing", "score": 0.5, "seconds": 9, "error": "lost", "kind": "x"} for row in rows]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    cases = opening.cases("log.jsonl")
    assert list(cases.columns) == ["kind"]
    found = opening.gather("mine.py:shout", None, cases=cases).old
    reading.write(folder / "kept.jsonl", found)
    again = reading.predictions(folder / "kept.jsonl")
    assert again.outputs == found.outputs == [row["label"] for row in rows]
    assert (again.scores, again.errors) == (None, {})


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"])
def test_a_dot_in_the_name_of_a_model_is_no_suffix(folder: Path, name: str) -> None:
    assert opening._kind(name) == "transformers"
    assert opening._kind("./none.bin") == "unknown"


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


@pytest.mark.parametrize(
    ("new", "settings", "match"),
    [
        ("mine.py:quiet", {"wrod": "t"}, "Did you mean word"),
        ("mine.py:quiet", {"batch": "x"}, "whole number"),
        ("http://127.0.0.1:1/v1", {"k": "none"}, "whole number"),
        ("nobodys-model", {}, "MiniLM"),
        ("none.csv", {}, "no file"),
    ],
)
def test_a_slip_in_the_new_version_shows_before_the_old_one_runs(folder: Path, new: str, settings: dict, match: str) -> None:
    (folder / "slow.py").write_text("def f(text):\n    raise KeyboardInterrupt\n")
    with pytest.raises(InstarError, match=match):
        opening.gather("slow.py:f", new, settings={"new": settings}, cases=opening.cases("items.jsonl"))


@pytest.mark.parametrize("name", ["x" * 5000, "http://127.0.0.1:1/v1?" + "k" * 5000 + "#m.csv", "a\0b", "y:" + "x" * 5000])
def test_long_and_odd_names_are_no_crash(folder: Path, name: str) -> None:
    with pytest.raises(InstarError):
        opening.gather(name, "old.jsonl", cases=opening.cases("items.jsonl"))


def updated(model: Any, folder: Path, names: list[str], tokenizer: Any = None) -> list[Path]:
    """Two updates of a stored model, both recorded; every state is also stored on its own, beside the folder."""
    found = []
    for i, scale in enumerate((1.0, 0.5, 3.0)):
        with updating(model, method="scale", settings={"scale": scale}, changes=names) as update, torch.no_grad():
            for name in names:
                model.get_parameter(name).mul_(scale)
        for place in (folder, folder.with_name(f"state{i}")):
            model.save_pretrained(place)
            if tokenizer is not None:
                tokenizer.save_pretrained(place)
        if i:
            found.append(update.receipt.record(folder))
    return found


def vectors(source: str, settings: dict[str, Any]) -> Any:
    """What a version of a stored model makes of some texts, without a process of its own."""
    version = opening.version_of(source, settings)
    subject, _ = version.open(version._folder, version._chosen)  # type: ignore[attr-defined]
    return subject.answer(WORDS, "classification", version._chosen, lambda done: None).embeddings  # type: ignore[attr-defined]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_before_and_after_a_receipt(stored: torch.dtype, tmp_path: Path) -> None:
    """A stored encoder before each of two updates and after, in any type: as the model was at that time, to the bit."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from instar.data import pretrained

    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = BertModel(config).to(stored).eval()
    tokenizer = AutoTokenizer.from_pretrained(pretrained.folder("all-MiniLM-L6-v2"))
    names = ["encoder.layer.0.output.dense.weight", "encoder.layer.1.attention.self.query.weight"]
    receipts = updated(model, tmp_path / "model", names, tokenizer)
    for settings in ({}, {"dtype": "bfloat16"}, {"quantize": "int8"}):
        states = [vectors(str(tmp_path / f"state{i}"), settings) for i in range(3)]
        assert not np.array_equal(states[0], states[1])
        assert not np.array_equal(states[1], states[2])
        for i, receipt in enumerate(receipts):
            np.testing.assert_array_equal(vectors(f"before:{receipt}", settings), states[i])
            np.testing.assert_array_equal(vectors(f"after:{receipt}", settings), states[i + 1])
    if stored == torch.float32:
        found = opening.gather(f"before:{receipts[0]}", f"after:{receipts[1]}", cases=WORDS)
        assert found.new is not None
        assert judge(found.old, found.new, cases=WORDS).items == 6
        assert np.array_equal(found.new.embeddings, vectors(f"after:{receipts[1]}", {}))
    with pytest.raises(ReceiptError, match="none of the receipts"):
        opening.version_of(f"before:{tmp_path}/model/receipts/009-none", {})
    with pytest.raises(UnknownNameError, match="layers"):
        opening.version_of(f"before:{receipts[0]}", {"layers": 1})


@pytest.mark.parametrize("kind", ["decoder", "tokenformer"])
def test_one_of_our_decoders_before_and_after_a_receipt(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Decoder(257, 16, 1, "gla", heads=2) if kind == "decoder" else TokenFormer(257, 16, 1, heads=2)
    model.eval()
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = next(n for n, p in model.named_parameters() if p.dim() == 2)
    receipts = updated(model, tmp_path / "model", [name])
    monkeypatch.chdir(tmp_path)
    for source, state in (("before:model/receipts/" + receipts[0].name, first), (f"after:{receipts[1]}", model.state_dict())):
        version = opening.version_of(source, {})
        subject, _ = version.open(version._folder, version._chosen)  # type: ignore[attr-defined]
        assert all(torch.equal(tensor, state[name]) for name, tensor in subject.model.state_dict().items())
