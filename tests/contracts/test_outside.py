"""The contract finds what is known of public layers, with their own masks and states; the page says what was found."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
ASKED = ("minLSTM", "minGRU", "Qwen3NextGatedDeltaNet", "Attention")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The script as a module: its cases and its table."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        spec = importlib.util.spec_from_file_location("check_outside_mixers", ROOT / "examples" / "check_outside_mixers.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # its dataclass asks for it
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def recorded() -> list[dict]:
    return json.loads((ROOT / "benchmarks" / "results" / "outside_mixers.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def rows(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("outside") / "findings.json"
    example.main([word for name in ASKED for word in ("--only", name)] + ["--out", str(out)])
    return {row["mixer"]: row for row in json.loads(out.read_text("utf-8"))}


def findings(row: dict) -> set[str]:
    if "skipped" in row:
        pytest.skip(row["skipped"])
    return {item["check"] for item in row["found"]}


def test_state_sent_through_its_activation_twice_is_found(rows: dict[str, dict]) -> None:
    assert {"split", "reference"} <= findings(rows["minLSTM"])
    assert "split" not in findings(rows["minGRU"])


def test_pads_that_decay_the_state_are_found(rows: dict[str, dict]) -> None:
    found = findings(rows["Qwen3NextGatedDeltaNet"])
    assert "padding" in found
    assert not found & {"split", "reference", "causality", "rows", "gradients"}


def test_record_says_what_is_found_with_its_versions(rows: dict[str, dict], recorded: list[dict]) -> None:
    now = {(r["mixer"], r.get("version"), r.get("torch")): r for r in rows.values()}
    alike = [(now[key], row) for row in recorded if (key := (row["mixer"], row["version"], row["torch"])) in now]
    if not alike:
        pytest.skip("none of the recorded versions is installed")
    for here, row in alike:
        assert findings(here) == findings(row)


def test_the_page_is_made_from_the_record(example: ModuleType, recorded: list[dict], tmp_path: Path) -> None:
    page = (ROOT / "docs" / "mixers.md").read_text("utf-8")
    told = page.partition(example.BEGIN)[2].partition(example.END)[0].strip()
    assert told == example.table(recorded)
    path = tmp_path / "page.md"
    path.write_text(f"a\n{example.BEGIN}\nold\n{example.END}\nb\n", "utf-8")
    example.insert(path, recorded[:1])
    assert path.read_text("utf-8") == f"a\n{example.BEGIN}\n{example.table(recorded[:1])}\n{example.END}\nb\n"
    with pytest.raises(SystemExit, match="no place"):
        example.insert(ROOT / "README.md", recorded)


def test_what_is_found_has_been_read_in_the_code(recorded: list[dict]) -> None:
    assert [f"{row['mixer']}: {item['check']}" for row in recorded for item in row["found"] if not item["because"]] == []
