"""The texts behind the rows of an index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from instar.errors import DataError


@dataclass(frozen=True)
class Texts:
    """What a backfill reads beside the index."""

    texts: Mapping[str, str]
    """Id, as text -> text. Rows whose text is empty are left out."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """Id -> how often it is asked for."""


def read(data: str) -> Texts:
    """From a file with columns `id` and `text` (and `count`), or a collection with a name.

    Raises DataError for a file without those columns, an id that appears twice with different texts, and no texts at all.
    """
    if not Path(data).suffix:
        from instar.data.collecting import open_collection

        found = open_collection(data)
        if found.texts is None:
            raise DataError(f"{data} holds no texts.")
        return Texts(dict(zip(found.ids, found.texts, strict=True)), found.counts)
    columns = _columns(Path(data), "id", "text")
    texts: dict[str, str] = {}
    for name, text in zip(columns["id"], columns["text"], strict=True):
        if not isinstance(text, str) or not text.strip():
            continue
        if texts.setdefault(str(name), text) != text:
            raise DataError(f"{data} holds two different texts of the id {name}. Keep one of them.")
    if not texts:
        raise DataError(f"{data} holds no text.")
    return Texts(texts, _counted(data, columns) if "count" in columns else {})


def counts(path: Path) -> dict[str, float]:
    """How often each row is asked for, from a file with columns `id` and `count`. Raises DataError."""
    return _counted(str(path), _columns(path, "id", "count"))


def _counted(source: str, columns: Mapping[str, list[object]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in zip(columns["id"], columns["count"], strict=True):
        if value is None:
            continue
        try:
            found[str(name)] = found.get(str(name), 0.0) + float(str(value))
        except ValueError as error:
            raise DataError(f"{source}: the count of id {name} is no number: {value!r}.") from error
    return found


def _columns(path: Path, *needed: str) -> dict[str, list[object]]:
    from instar.gate import rows

    found: dict[str, list[object]] = dict(rows.columns(path))
    if lacking := [name for name in needed if name not in found]:
        raise DataError(f"{path} has no column {' and '.join(lacking)}; it has {', '.join(found) or 'none'}.")
    return found
