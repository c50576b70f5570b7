"""Records as one table of Parquet: a row for each run or trial, and for each method of a timing pass."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import instar
from instar import extras, files
from instar.bench.record import Record
from instar.errors import OutputError

_TEXTS = ("id", "kind", "status", "reason", "problem", "address", "method", "setting", "budget", "split", "data_sha256",
          "settings", "arguments", "command", "started", "finished")  # fmt: skip
_WHOLE = ("seed", "steps", "train_tokens")


def write(records: Sequence[Record], path: Path) -> int:
    """Write the table and return its number of rows. Needs the extra `parquet`.

    Columns: what a run is (id, kind, status, reason, problem, address, method, setting, baseline, budget, split, seed, steps, …);
    `metric.NAME` and `items.NAME`, the value of a quality metric and the number of items that it is a mean of; `cost.NAME`;
    `time.NAME` and `time.NAME.minimum`, the median and minimum over the rounds of a timing pass; `resource.NAME`;
    `environment.NAME`. Settings and arguments are JSON. What a record lacks is null. Raises OutputError, MissingExtraError.
    """
    if path.suffix != ".parquet":
        raise OutputError(f"Records are exported to a .parquet file, received '{path.name}'.")
    arrow = extras.require("pyarrow", "parquet")
    parquet = extras.require("pyarrow.parquet", "parquet")
    rows = [row for record in records for row in _rows(record)]
    worded = sorted({key for row in rows for key, value in row.items() if "." in key and isinstance(value, str)})
    numbers = sorted({key for row in rows for key in row} - {*_TEXTS, *_WHOLE, "baseline", *worded})
    rows = [row | {key: _text(row[key]) for key in worded if key in row} for row in rows]
    fields = [
        *((name, arrow.string()) for name in _TEXTS),
        ("baseline", arrow.bool_()),
        *((name, arrow.int64()) for name in _WHOLE),
        *((name, arrow.float64()) for name in numbers),
        *((name, arrow.string()) for name in worded),
    ]
    schema = arrow.schema(fields, metadata={"instar": instar.__version__})
    table = arrow.Table.from_pylist(rows, schema=schema)
    sink = arrow.BufferOutputStream()
    parquet.write_table(table, sink)
    files.folder(path.parent)
    files.write(path, sink.getvalue().to_pybytes())
    return len(rows)


def _rows(record: Record) -> Iterator[dict[str, Any]]:
    spec = record["spec"]
    method, problem = spec.get("method") or {}, spec.get("problem") or {}
    common: dict[str, Any] = {
        **{name: _text(record.get(name)) for name in _TEXTS},
        "problem": _text(problem.get("slug")),
        "data_sha256": _text(record.get("data", {}).get("sha256")),
        "settings": json.dumps(problem.get("settings", {}), sort_keys=True),
        "baseline": record.get("baseline"),
        "seed": spec.get("seed"),
        "steps": spec.get("steps"),
        "train_tokens": record.get("train_tokens"),
        **{f"resource.{key}": _plain(value) for key, value in record.get("resources", {}).items()},
        **{f"environment.{key}": _plain(value) for key, value in record.get("environment", {}).items()},
    }
    if record["kind"] == "timing":
        for address, times in record.get("times", {}).items():
            medians = {f"time.{name}": float(entry["median"]) for name, entry in times.items()}
            minima = {f"time.{name}.minimum": float(entry["minimum"]) for name, entry in times.items()}
            yield {**common, "address": _text(address), "method": _text(address.partition(":")[0]), **medians, **minima}
        return
    metrics = record.get("metrics", {})
    yield {
        **common,
        "method": _text(method.get("slug")),
        "arguments": json.dumps(method.get("arguments", {}), sort_keys=True),
        **{f"metric.{name}": float(entry["value"]) for name, entry in metrics.items()},
        **{f"items.{name}": float(len(entry["totals"])) for name, entry in metrics.items()},
        **{f"cost.{name}": float(value) for name, value in record.get("costs", {}).items()},
    }


def _plain(value: Any) -> Any:
    """A number or a text for a cell; what is nested is JSON."""
    if value is None or isinstance(value, bool):
        return None if value is None else str(value).lower()
    return float(value) if isinstance(value, (int, float)) else _text(value)


def _text(value: Any) -> str | None:
    """A text that Parquet can hold: lone surrogates, which UTF-8 has no form for, become question marks."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text.encode("utf-8", "replace").decode("utf-8")
