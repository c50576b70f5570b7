"""Frozen baselines: the same judgement tomorrow, and no silent change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_predictions import flipped, version

from instar.errors import DataError, OutputError
from instar.gate import baseline
from instar.gate.judge import judge
from instar.gate.predictions import Cases

RIGHT = np.arange(120) % 6 > 0
CASES = Cases(
    "items",
    [f"item-{i}" for i in range(120)],
    [f"what of {i}?" for i in range(120)],
    version("v", RIGHT).labels,
    columns={"part": ["a", "b"] * 60},
    examples=[("text", "yes"), ("other", "no")],
    documents=[("d1", "a document")],
)


def test_round_trip(tmp_path: Path) -> None:
    old, again = version("old", RIGHT, costs={"size_bytes": 5.0}), version("again", flipped(RIGHT, [3]))
    folder = baseline.freeze(tmp_path / "base", old, [again], cases=CASES, task="classification", block="")
    found = baseline.load(folder)
    assert found.task == "classification"
    assert found.old.name == "old"
    assert found.old.costs == {"size_bytes": 5.0}
    assert found.cases is not None
    assert found.cases.examples == list(CASES.examples)
    assert found.cases.documents == list(CASES.documents)
    assert found.cases.columns == CASES.columns
    new = version("new", flipped(RIGHT, [1, 2]))
    before, after = judge(old, new, again=[again]), judge(found.old, new, again=found.again)
    assert before.measures == after.measures
    assert before.tests == after.tests


def test_what_was_frozen_is_not_changed(tmp_path: Path) -> None:
    folder = baseline.freeze(tmp_path / "base", version("old", RIGHT))
    with pytest.raises(OutputError, match="is not overwritten"):
        baseline.freeze(folder, version("new", RIGHT))
    path = folder / "predictions.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"yes"', '"no"', 1))
    with pytest.raises(DataError, match="changed since it was frozen"):
        baseline.load(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"lacks predictions\.jsonl"):
        baseline.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"files": {"../../secret": "0"}},
        {"files": {"predictions.jsonl": "0" * 64, "/etc/passwd": "0"}},
        {"versions": 3},
        {"files": None},
    ],
)
def test_hostile_manifests(tmp_path: Path, change: dict) -> None:
    folder = baseline.freeze(tmp_path / "base", version("old", RIGHT))
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(DataError):
        baseline.load(folder)
    manifest.write_text("{")
    with pytest.raises(DataError, match="no manifest"):
        baseline.load(folder)


def test_a_failed_freeze_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        baseline.freeze(tmp_path / "base", version("old", RIGHT))
    assert list(tmp_path.iterdir()) == []
