"""`instar finance`: from files to a table, said in words, as JSON, and by exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from instar.cli.app import app
from instar.errors import DataError, MissingExtraError, UnknownNameError

pytest.importorskip("duckdb")
pytest.importorskip("exchange_calendars")

ROWS = """{"Date": "2023-03-15 15:00:00 UTC", "Article_title": "$ALU rose", "Url": "https://a.example/1", "Stock_symbol": "ALU"}
{"Date": "soon", "Article_title": "\\u001b[31mALU", "Url": "https://a.example/2", "Stock_symbol": "ALU"}
"""
BARS = "Date,Open,High,Low,Close,Adj Close,Volume\n2023-03-14,1,2,1,1,1,9\n2023-03-15,1,2,1,1,1,9\n2023-03-16,1,2,1,1,1,9\n"
CONFIG = """store = "store"
[[sources]]
name = "news"
kind = "dump"
files = ["news.jsonl"]
[[sources]]
name = "bars"
kind = "prices"
files = ["ALU.csv"]
"""


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["finance", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "news.jsonl").write_text(ROWS)
    (tmp_path / "ALU.csv").write_text(BARS)
    (tmp_path / "finance.toml").write_text(CONFIG)
    return str(tmp_path / "finance.toml")


def test_from_files_to_a_table(config: str) -> None:
    assert "2 new, 0 unchanged, 0 failed" in run("ingest", config)
    assert "build: 1 made" in run("build", config)
    said = run("status", config)
    assert "ALU: 2023-03-14 to 2023-03-16, 3 sessions" in said
    assert "'soon' is no date" in said
    found = json.loads(run("status", config, "--json"))
    assert found["rows"]["article"] == 1
    assert found["symbols"]["ALU"]["with_news"] == 1
    again = json.loads(run("update", config, "--json"))
    assert again["ingested"]["unchanged"] == 2
    assert all(stage["made"] == 0 for stage in again["stages"])
    assert "what its hash says" in run("verify", config)
    assert "build: 1 made" in run("build", config, "--as-of", "2100-01-01T00:00")
    raw = next(path for path in (Path(config).parent / "store" / "raw").rglob("*") if path.is_file())
    raw.write_bytes(b"x")
    assert json.loads(run("verify", config, "--json", code=1))["problems"]


def test_what_gives_nothing_is_told_and_the_rest_is_fetched(config: str) -> None:
    path = Path(config)
    path.write_text(CONFIG + '[[sources]]\nname = "wire"\nkind = "feed"\nurls = ["https://feeds.example/rss"]\n')
    said = run("update", config, code=1)
    assert "2 new, 0 unchanged, 1 failed" in said
    assert "the network is off" in said
    with pytest.raises(DataError, match="not both"):
        run("update", config, "--network", "--replay", str(path.parent))
    with pytest.raises(DataError, match="no instant"):
        run("build", config, "--as-of", "then")
    with pytest.raises(UnknownNameError, match="normalise"):
        run("build", config, "--stage", "normalize")
    with pytest.raises(DataError, match="cannot be read"):
        run("status", config + "x")
    path.write_text(CONFIG.replace("store", 'alignment = "fnspid_compat"\nstore', 1))
    with pytest.raises(DataError, match="see the future"):
        run("effect", config)


def test_help_has_examples() -> None:
    for command in ("ingest", "update", "build", "status", "verify", "effect"):
        assert "Example" in run(command, "--help")


def test_without_the_extra_it_is_said_how_to_install_it(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(MissingExtraError, match=r"instar\[finance\]"):
        run("build", config)
