"""The contract finds what is known of public mixers, through the adapters of the example."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("outside") / "findings.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "check_outside_mixers.py"), "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {row["mixer"]: row for row in json.loads(out.read_text("utf-8"))}


def findings(row: dict) -> set[str]:
    if "skipped" in row:
        pytest.skip(row["skipped"])
    return {item["check"] for item in row["found"]}


def test_state_sent_through_its_activation_twice_is_found(rows: dict[str, dict]) -> None:
    assert {"split", "reference"} <= findings(rows["minLSTM"])
    assert "split" not in findings(rows["minGRU"])


def test_pads_that_decay_the_state_are_found(rows: dict[str, dict]) -> None:
    found = findings(rows["Qwen3NextGatedDeltaNet on CPU"])
    assert "padding" in found
    assert not found & {"split", "reference", "causality", "rows", "gradients"}


def test_record_says_what_is_found_with_its_versions(rows: dict[str, dict]) -> None:
    recorded = json.loads((ROOT / "benchmarks" / "results" / "outside_mixers.json").read_text("utf-8"))
    now = {(r["mixer"], r.get("version"), r.get("torch")): r for r in rows.values()}
    alike = [(now[key], row) for row in recorded if (key := (row["mixer"], row["version"], row["torch"])) in now]
    if not alike:
        pytest.skip("none of the recorded versions is installed")
    for here, row in alike:
        assert findings(here) == findings(row)
