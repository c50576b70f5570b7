"""Files: three formats say the same, a round trip keeps everything, and what is wrong is named with its place."""

from __future__ import annotations

import csv
import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from instar.errors import DataError
from instar.gate import reading
from instar.gate.predictions import Predictions

ROWS: list[dict[str, Any]] = [
    {"id": "a", "output": "yes", "label": "yes", "score": 0.9, "domain": "bank", "embedding": [0.5, 1.0]},
    {"id": "b", "output": "no", "label": "yes", "score": 0.2, "domain": "travel", "embedding": [0.0, -1.0]},
    {"id": "ü,\"'", "output": "two\nlines", "label": "x", "score": 1, "domain": None, "embedding": [1, 2]},
]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            for row in rows:
                writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(ROWS))
    assert reading.predictions(path).ids == ["a", "b", "ü,\"'"]
    _write(path, ROWS)  # lines in a .json file
    assert reading.predictions(path).outputs == ["yes", "no", "two\nlines"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_formats_say_the_same(tmp_path: Path, kind: str) -> None:
    found = reading.predictions(_write(tmp_path / f"p.{kind}", ROWS))
    assert found.ids == ["a", "b", "ü,\"'"]
    assert found.outputs == ["yes", "no", "two\nlines"]
    assert found.labels == ["yes", "yes", "x"]
    assert found.scores is not None
    assert found.scores.tolist() == [0.9, 0.2, 1.0]
    assert found.embeddings is not None
    assert found.embeddings.tolist() == [[0.5, 1.0], [0.0, -1.0], [1.0, 2.0]]
    assert found.columns == {"domain": ["bank", "travel", None]}
    assert found.facts["sha256"] == reading.sha256(tmp_path / f"p.{kind}")


def test_round_trip(tmp_path: Path) -> None:
    version = Predictions(
        "v",
        ["1", "2", "3"],
        ["x", None, ["d1", "d2"]],
        labels=["x", 2, ["d1"]],
        scores=np.array([0.1, np.nan, 1 / 3]),
        embeddings=np.array([[1.5, 0], [0, 1], [1, 1]], dtype=np.float32),
        inputs=["what?", "who?", "a\nb"],
        seconds=np.array([0.5, np.nan, 2.0]),
        errors={"2": "timed out"},
        columns={"hard": [True, False, None], "n": [1, 2, 3]},
    )
    reading.write(tmp_path / "v.jsonl", version)
    back = reading.predictions(tmp_path / "v.jsonl")
    for name in ("ids", "outputs", "labels", "inputs", "errors", "columns"):
        assert getattr(back, name) == getattr(version, name), name
    for name in ("scores", "embeddings", "seconds"):
        np.testing.assert_array_equal(getattr(back, name), getattr(version, name))


def test_rows_may_lack_fields_and_lines_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '\ufeff{"id": 1, "output": "a"}\n\n{"id": 2, "output": "b", "extra": 3}\r\n{"id": 3, "output": null}', "utf-8"
    )
    found = reading.predictions(path)
    assert found.ids == ["1", "2", "3"]
    assert found.outputs == ["a", "b", None]
    assert found.columns == {"extra": [None, 3, None]}


def test_more_rows_than_a_chunk(tmp_path: Path) -> None:
    rows = [{"id": i, "output": i % 7, **({"late": "x"} if i == 11_000 else {})} for i in range(12_345)]
    found = reading.predictions(_write(tmp_path / "p.jsonl", rows))
    assert len(found) == 12_345
    assert found.outputs == [i % 7 for i in range(12_345)]
    assert [i for i, v in enumerate(found.columns["late"]) if v] == [11_000]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("p.jsonl", '{"id": 1, "output": "a"}\n{"id": 2, "output"\n', "line 2 is no JSON"),
        ("p.jsonl", '[{"id": 1}]', "line 1 holds list; one object"),
        ("p.json", "[3]", "other things than objects"),
        ("p.json", "[{]", "no JSON"),
        ("p.csv", "id;output\n1;a\n", "one column, 'id;output'"),
        ("p.tsv", "id,output\n1,a\n", "one column, 'id,output'"),
        ("p.jsonl", '{"id": 1, "output": "a"}\n3\n', "line 2 holds int"),
        ("p.jsonl", '{"id": 1}, {"id": 2}\n', "line 1 is no JSON"),
        ("p.jsonl", "[" * 100_000 + "\n", "line 1 is no JSON"),
        ("p.jsonl", "", "holds no item"),
        ("p.jsonl", '{"output": "a"}\n', "no column 'id'"),
        ("p.jsonl", '{"id": 1, "answer": "a"}\n', "need 'id' and 'output'"),
        (
            "p.jsonl",
            '{"id": 1, "output": 1}\n{"id": 1, "output": 2}\n{"id": "1", "output": 2}\n',
            "1 ids occur more than once: '1'",
        ),
        ("p.jsonl", '{"id": null, "output": 1}\n', "item 1: an id"),
        ("p.jsonl", '{"id": [1], "output": 1}\n', "item 1: an id"),
        ("p.jsonl", '{"id": 1, "output": 1, "score": "high"}\n', "item 1: a number is expected"),
        ("p.jsonl", '{"id": 1, "output": 1, "score": 1' + "0" * 400 + "}\n", "item 1: a number is expected"),
        ("p.csv", "id;output\n1;a,b\n", "Fields are parted by ','"),
        ("p.jsonl", '{"id": 1, "output": 1, "embedding": [1, 2]}\n{"id": 2, "output": 1, "embedding": [1]}\n', "of one length"),
        ("p.jsonl", '{"id": 1, "output": 1, "embedding": [NaN]}\n', "finite numbers"),
        ("p.csv", "id,output\n1,a\n2\n", "line 3: 1 fields for 2 columns"),
        ("p.csv", "id,output,output\n1,a,b\n", "names a column twice"),
        ("p.csv", 'id,output\n1,"a\n', "line 2: unexpected end"),
        ("p.csv", "", "holds no item"),
        ("p.csv", "id,output\n", "holds no item"),
        ("p.txt", "x", "are not read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: str, match: str) -> None:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    with pytest.raises(DataError, match=match):
        reading.predictions(path)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"id": 1, "output": "\xff"}\n')
    with pytest.raises(DataError, match="no UTF-8"):
        reading.predictions(path)
    with pytest.raises(DataError, match="There is no file"):
        reading.predictions(tmp_path / "none.jsonl")
    damaged = tmp_path / "p.parquet"
    damaged.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="no Parquet file"):
        reading.predictions(damaged)


def test_cases(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    rows = [
        {"id": 1, "input": "2 + 2?", "choices": ["3", "4"], "label": 1, "kind": "sum"},
        {"id": 2, "input": "2 + 1?", "choices": ["3", "4"], "label": "A", "kind": "sum"},
        {"id": 3, "input": "1 + 3?", "choices": ["3", "4"], "label": "4", "kind": "sum"},
    ]
    found = reading.cases(_write(path, rows), examples=_write(tmp_path / "e.jsonl", [{"input": "a", "label": "b"}]))
    assert found.labels == ["4", "3", "4"]
    assert found.choices == [["3", "4"]] * 3
    assert found.columns == {"kind": ["sum"] * 3}
    assert found.examples == [("a", "b")]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"id": 1, "text": "a"}, "needs 'id' and 'input'"),
        ({"id": 1, "input": "a", "choices": ["x"]}, "two answers or more"),
        ({"id": 1, "input": "a", "choices": ["x", "y"], "label": 2}, "none of the choices"),
        ({"id": 1, "input": "a", "choices": ["x", "y"], "label": "z"}, "none of the choices"),
    ],
)
def test_cases_that_cannot_be_asked(tmp_path: Path, row: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        reading.cases(_write(tmp_path / "c.jsonl", [row]))


def test_empty_answers(tmp_path: Path) -> None:
    """In JSON lines an empty text is an answer; CSV cannot say so, and an error says that it is none."""
    rows = [
        {"id": 1, "output": ""},
        {"id": 2, "output": "", "error": "timed out"},
        {"id": 3, "output": None},
        {"id": 4, "output": "x"},
    ]
    found = reading.predictions(_write(tmp_path / "p.jsonl", rows))
    assert found.outputs == ["", None, None, "x"]
    assert found.errors == {"2": "timed out"}
    path = tmp_path / "p.csv"
    path.write_text("id,output,error\n1,,\n2,,timed out\n3,x,\n", "utf-8")
    found = reading.predictions(path)
    assert found.outputs == [None, None, "x"]
    assert "JSON lines" in found.errors["1"]
    assert found.errors["2"] == "timed out"


def test_nan_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": 1, "output": NaN, "label": NaN, "n": NaN}\n{"id": 2, "output": 1, "label": 2, "n": 3}\n')
    found = reading.predictions(path)
    assert (found.outputs, found.labels, found.columns["n"]) == ([None, 1], [None, 2], [None, 3])


def test_scores_alone_need_no_label(tmp_path: Path) -> None:
    found = reading.predictions(_write(tmp_path / "p.jsonl", [{"id": i, "score": i / 7, "label": "x"} for i in range(4)]))
    assert found.labels is None
    assert found.columns == {"label": ["x"] * 4}
    reading.write(tmp_path / "again.jsonl", found)  # as a frozen baseline is: what is no answer must not become one
    again = reading.predictions(tmp_path / "again.jsonl")
    assert (again.labels, again.outputs, again.columns) == (None, found.outputs, found.columns)


def test_columns_keep_their_order(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(30)]
    rows = [{"id": 1, "output": 1, **dict.fromkeys(names[:20], "a")}, {"id": 2, "output": 1, **dict.fromkeys(names, "b")}]
    assert list(reading.predictions(_write(tmp_path / "p.jsonl", rows)).columns) == names


def test_parquet_has_more_types(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    day = datetime.date(2024, 1, 31)
    table = {"id": [day], "output": [Decimal("1.50")], "day": [day], "nested": [[day]], "raw": [b"x"]}
    parquet.write_table(pyarrow.table(table), path)
    found = reading.predictions(path)
    assert (found.ids, found.outputs) == (["2024-01-31"], ["1.50"])
    reading.write(tmp_path / "p.jsonl", found)  # all of it is JSON
    assert reading.predictions(tmp_path / "p.jsonl").columns == found.columns
