"""The tables of a store: their columns, and rows of Python as Arrow and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from instar import extras

_COLUMNS: dict[str, dict[str, str]] = {
    "raw_item": {
        "sha256": "str", "source": "str", "url": "str", "retrieved_at": "time", "status": "int", "etag": "str",
        "content_type": "str", "size": "int",
    },
    "record": {
        "key": "str", "digest": "str", "source": "str", "raw": "str", "place": "int", "url": "str", "url_canonical": "str",
        "title": "str", "body": "str", "body_hash": "str", "simhash": "code", "publisher": "str", "author": "str",
        "published_at_utc": "time", "known_at_utc": "time", "tz_source": "str", "time_precision": "str", "first_seen_at": "time",
        "symbols": "strs", "given": "float",
    },
    "price": {
        "symbol": "str", "session": "date", "open": "float", "high": "float", "low": "float", "close": "float",
        "adj_close": "float", "volume": "float", "source": "str", "raw": "str", "as_of": "time",
    },
    "quarantine": {"source": "str", "raw": "str", "place": "int", "stage": "str", "reason": "str"},
    "article": {
        "id": "str", "url_canonical": "str", "title": "str", "body_hash": "str", "publisher": "str", "author": "str",
        "published_at_utc": "time", "known_at_utc": "time", "tz_source": "str", "time_precision": "str", "first_seen_at": "time",
        "source": "str", "raw": "str", "place": "int", "of": "str",
    },
    "body": {"article": "str", "text": "str"},
    "hint": {"article": "str", "symbol": "str", "given": "float"},
    "duplicate": {
        "id": "str", "article": "str", "rule": "str", "url_canonical": "str", "published_at_utc": "time", "known_at_utc": "time",
    },
    "article_symbol": {"article": "str", "symbol": "str", "relevance": "float", "rule": "str"},
    "summary": {"article": "str", "method": "str", "version": "str", "input": "str", "text": "str"},
    "sentiment": {
        "article": "str", "symbol": "str", "model": "str", "version": "str", "input": "str", "score": "float", "raw": "float",
    },
    "aligned": {"article": "str", "symbol": "str", "session": "date", "rule": "str", "copy": "bool", "look_ahead": "bool"},
    "daily": {
        "symbol": "str", "session": "date", "open": "float", "high": "float", "low": "float", "close": "float",
        "adj_close": "float", "volume": "float", "log_return": "float", "volume_z": "float", "articles": "int", "copies": "int",
        "scored": "int", "mean": "float", "max_abs": "float", "share_negative": "float", "decayed": "float",
        "days_since_news": "int", "news_flag": "int", "scaled_sentiment": "float", "build_id": "str",
    },
}  # fmt: skip
"""`record` and `body` hold what was said word for word, and `summary` sentences of it: they stay in the store."""


def names() -> list[str]:
    """The tables."""
    return list(_COLUMNS)


@cache
def schema(name: str) -> Any:
    """The Arrow schema of a table."""
    pa = extras.require("pyarrow", "finance")
    kinds = {
        "str": pa.string(), "strs": pa.list_(pa.string()), "int": pa.int64(), "code": pa.uint64(), "float": pa.float64(),
        "bool": pa.bool_(), "time": pa.timestamp("us", tz="UTC"), "date": pa.date32(),
    }  # fmt: skip
    return pa.schema([(column, kinds[kind]) for column, kind in _COLUMNS[name].items()])


def table(name: str, rows: Iterable[Mapping[str, Any]]) -> Any:
    """Rows as an Arrow table of the schema `name`, in their order."""
    pa = extras.require("pyarrow", "finance")
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema(name))


def digest(*parts: Any) -> str:
    """SHA-256 of texts, numbers and lists of them, told apart by their length."""
    found = hashlib.sha256()
    for part in parts:
        data = repr(part).encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "big"))
        found.update(data)
    return found.hexdigest()
