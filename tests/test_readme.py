"""The README says what is true: its code runs, its files exist; and the ledger of claims is what the records give."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from instar.bench import claims
from instar.errors import OutputError
from instar.report import ledger

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_code_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 2
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_the_ledger_is_computed() -> None:
    rows = [asdict(claims.judge(card, claim, ROOT / "results")) for card, claim in claims.select()]
    block = (ROOT / "docs" / "claims.md").read_text("utf-8").partition(ledger.BEGIN)[2].partition(ledger.END)[0].strip()
    assert block == ledger.markdown(rows), "Run: instar claims --into docs/claims.md"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_a_file_without_markers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.md"
    path.write_text("text")
    with pytest.raises(OutputError, match="place for the ledger"):
        ledger.insert(path, [])
    assert path.read_text() == "text"
