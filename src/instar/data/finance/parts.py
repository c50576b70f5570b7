"""Parts of tables as Parquet files that are named by their own SHA-256: written whole or not at all, and never changed."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instar import extras, files
from instar.data.finance import tables
from instar.errors import DataError

_GROUP = 1000
"""Rows that are compressed together: what is read where a few rows of a large part are asked for."""


class Parts:
    """The folder `tables/` of a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parquet = extras.require("pyarrow.parquet", "finance")

    def path(self, table: str, sha256: str) -> Path:
        """Where a part of a table stands."""
        return self.folder / "tables" / table / f"{sha256}.parquet"

    def write(self, table: str, value: Any) -> tuple[str, int]:
        """Keep a part; (SHA-256, rows). The same rows give the same bytes. Raises OutputError."""
        buffer = io.BytesIO()
        self._parquet.write_table(value.combine_chunks(), buffer, compression="zstd", row_group_size=_GROUP)
        data = buffer.getvalue()
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path(table, sha256)
        if not path.is_file():
            files.folder(path.parent)
            files.write(path, data)
        return sha256, value.num_rows

    def read(self, table: str, shas: Iterable[str], columns: Sequence[str] | None = None) -> Any:
        """Parts of a table, one after another, as one Arrow table. Raises DataError for a part that is gone or damaged."""
        pa = extras.require("pyarrow", "finance")
        schema = tables.schema(table)
        found = [schema.empty_table().select(columns) if columns else schema.empty_table()]
        for sha256 in shas:
            with self._opened(table, sha256) as file:
                found.append(file.read(columns=list(columns) if columns else None, use_threads=False))
        return pa.concat_tables(found)

    def groups(self, table: str, sha256: str) -> list[int]:
        """Rows of each group of a part: it is read a group at a time where a few rows are asked for."""
        with self._opened(table, sha256) as file:
            return [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]

    def group(self, table: str, sha256: str, number: int) -> Any:
        """One group of a part as an Arrow table."""
        with self._opened(table, sha256) as file:
            return file.read_row_group(number, use_threads=False)

    @contextmanager
    def _opened(self, table: str, sha256: str) -> Iterator[Any]:
        path = self.path(table, sha256)
        try:
            with self._parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
                yield file
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {str(error)[:150]}. Remove catalogue.duckdb and build again.") from error

    def problem(self, table: str, sha256: str) -> str:
        """What is wrong with a part, or ""."""
        path = self.path(table, sha256)
        if not path.is_file():
            return f"{path} is gone. Remove catalogue.duckdb and build again from the raw store."
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            return f"{path} was changed. Remove it and catalogue.duckdb, and build again from the raw store."
        return ""
