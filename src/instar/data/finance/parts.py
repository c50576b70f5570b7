"""Parts of tables as Parquet files that are named by their own SHA-256: written whole or not at all, and never changed."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from instar import extras, files
from instar.data.finance import tables
from instar.errors import DataError


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
        self._parquet.write_table(value.combine_chunks(), buffer, compression="zstd")
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
            path = self.path(table, sha256)
            try:
                with self._parquet.ParquetFile(path) as file:
                    found.append(file.read(columns=list(columns) if columns else None, use_threads=False))
            except (OSError, ValueError) as error:
                raise DataError(f"{path} cannot be read: {str(error)[:150]}. Remove catalogue.duckdb and build again.") from error
        return pa.concat_tables(found)

    def problem(self, table: str, sha256: str) -> str:
        """What is wrong with a part, or ""."""
        path = self.path(table, sha256)
        if not path.is_file():
            return f"{path} is gone. Remove catalogue.duckdb and build again from the raw store."
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            return f"{path} was changed. Remove it and catalogue.duckdb, and build again from the raw store."
        return ""
