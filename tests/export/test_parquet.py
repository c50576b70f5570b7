"""Records as Parquet: every record is a row, every figure its own, and what is strange stays text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from instar.bench.record import Record
from instar.cli.app import app
from instar.errors import OutputError, RecordError
from instar.export import parquet

sys.path.append(str(Path(__file__).parent.parent / "report"))  # records made by formulas
from made_records import HOSTILE, failed, full, run, store, timing

arrow = pytest.importorskip("pyarrow.parquet")


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = arrow.read_table(path).to_pylist()
    return rows


def test_every_record_is_a_row_with_its_figures(tmp_path: Path) -> None:
    records: list[Record] = [*full(), failed("gla", 7, "NaN at step 3")]
    path = tmp_path / "new" / "runs.parquet"
    count = parquet.write(records, path)
    rows = read(path)
    timed = [record for record in records if record["kind"] == "timing"]
    assert count == len(rows) == len(records) - len(timed) + sum(len(record["times"]) for record in timed)
    by_id = {row["id"]: row for row in rows if row["kind"] != "timing"}
    for record in records:
        if record["kind"] == "timing":
            continue
        row = by_id[record["id"]]
        assert (row["address"], row["seed"], row["status"]) == (record["address"], record["spec"]["seed"], record["status"])
        assert row["problem"] == "prose"
        for name, entry in record.get("metrics", {}).items():
            assert row[f"metric.{name}"] == entry["value"]
            assert row[f"items.{name}"] == len(entry["totals"])
        for name, value in record.get("costs", {}).items():
            assert row[f"cost.{name}"] == value
    lost = by_id[failed("gla", 7, "NaN at step 3")["id"]]
    assert lost["metric.accuracy"] is None
    assert lost["reason"] == "NaN at step 3"


def test_rounds_of_timing_are_their_median_and_minimum(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    made = timing(["gla", "softmax"])
    assert parquet.write([made], path) == 2
    for row in read(path):
        entry = made["times"][row["address"]]["prefill_seconds@256"]
        assert row["time.prefill_seconds@256"] == entry["median"]
        assert row["time.prefill_seconds@256.minimum"] == entry["minimum"]


def test_hostile_texts_and_lone_surrogates_come_back_as_text(tmp_path: Path) -> None:
    path = tmp_path / "h.parquet"
    parquet.write([run("gla", 0, command=HOSTILE), run("gla", 1, command="a\ud800b", environment={"cpu": None})], path)
    assert [row["command"] for row in read(path)] == [HOSTILE, "a?b"]


def test_a_column_that_is_a_number_here_and_a_word_there_is_words(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    parquet.write([run("gla", 0, environment={"cores": 2}), run("gla", 1, environment={"cores": "many"})], path)
    assert [row["environment.cores"] for row in read(path)] == ["2.0", "many"]


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="parquet"):
        parquet.write([run("gla", 0)], tmp_path / "runs.csv")
    command = ["export", "records", str(tmp_path / "nowhere")]
    done = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "x.parquet")])
    assert isinstance(done.exception, RecordError)
    assert CliRunner().invoke(app, command).exit_code == 2


def test_the_command_writes_what_pandas_reads(tmp_path: Path) -> None:
    folder = store(tmp_path / "runs", [run("gla", seed) for seed in range(3)])
    done = CliRunner().invoke(app, ["export", "records", str(folder), "-o", str(tmp_path / "x.parquet")])
    assert done.exit_code == 0, done.output
    assert "3 rows" in done.output
    assert sorted(row["seed"] for row in read(tmp_path / "x.parquet")) == [0, 1, 2]
