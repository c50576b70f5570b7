"""What an index asks of one Qdrant collection, on a server or in a folder, with failures in words."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from instar import extras
from instar.errors import DataError, InstarError, StoreError
from instar.interfaces import Floats, Id
from instar.retrieval import checking

_META = "meta.json"
"""What makes a folder one of Qdrant's local mode."""
Vectors = tuple[list[str], list[str]]
"""Vectors that a point has, and those that it has not."""


@dataclass(frozen=True)
class Point:
    """An id and those of the named vectors that were asked for and are there."""

    id: Id
    vectors: dict[str, list[float]]


def given(values: Sequence[Any], what: str = "ids") -> list[Id]:
    """Ids as Qdrant has them: whole numbers from 0, and UUIDs in their plain spelling. Raises DataError."""
    return checking.ids([_one(value, what) for value in checking.ids(values, what)], what)


def _one(value: Id, what: str) -> Id:
    try:
        if isinstance(value, str):
            return str(uuid.UUID(value))
    except ValueError as error:
        raise DataError(
            f"The {what} of Qdrant are whole numbers from 0 or UUIDs, received {checking.shown(value)}. Keep other names in the "
            "payload, and derive the id with uuid.uuid5."
        ) from error
    if value < 0:
        raise DataError(f"The {what} of Qdrant are whole numbers from 0 or UUIDs, received {value}.")
    return value


class Client:
    """One collection. Raises StoreError for whatever fails."""

    def __init__(self, location: str, name: str, *, make_folder: bool = False) -> None:
        package = extras.require("qdrant_client", "qdrant")
        self._models: Any = package.models
        self._package, self._location, self._name = package, location, name
        self._remote = location.startswith(("http://", "https://"))
        shown = (
            urlsplit(location)._replace(netloc=urlsplit(location).netloc.rpartition("@")[2]).geturl()
            if self._remote
            else location
        )
        self.where = f"Collection '{name}' of Qdrant in {shown}"
        known = self._remote or (Path(location) / _META).is_file()
        if not known and not make_folder:
            raise StoreError(
                f"{location} is no folder of Qdrant's local mode (it has no meta.json), and no http:// or https:// address."
            )
        try:
            with self._told("open"):
                self._client: Any = (
                    package.QdrantClient(url=location, api_key=_key(location), check_compatibility=False)
                    if self._remote
                    else _local(package, location)
                )
        except StoreError:
            if not known:  # half of a new folder would be taken for a damaged one
                with contextlib.suppress(OSError):
                    (Path(location) / _META).unlink()
            raise

    def exists(self) -> bool:
        """Whether there is such a collection."""
        with self._told("look for the collection"):
            return bool(self._client.collection_exists(self._name))

    def description(self) -> dict[str, Any]:
        """The metadata of the collection."""
        return self._info().config.metadata or {}

    def describe(self, metadata: dict[str, str]) -> None:
        """Set keys of the metadata."""
        with self._structure("write the stamps"):
            self._client.update_collection(self._name, metadata=metadata)

    def vectors(self) -> dict[str, tuple[int, str]]:
        """Dense vectors by name, '' for the unnamed one: dimension and distance."""
        found = self._info().config.params.vectors or {}
        table = found if isinstance(found, dict) else {"": found}
        return {name: (v.size, v.distance.value) for name, v in table.items() if v.multivector_config is None}

    def names(self) -> set[str]:
        """Of all vectors, also of those that are lists of vectors, or sparse."""
        params = self._info().config.params
        dense = params.vectors or {}
        return {*(dense if isinstance(dense, dict) else [""]), *(params.sparse_vectors or {})}

    def create(self, vector: str, dim: int, metadata: dict[str, str]) -> None:
        """A new collection with one vector, compared by cosine."""
        with self._structure("create the collection"):
            params = self._models.VectorParams(size=dim, distance=self._models.Distance.COSINE)
            self._client.create_collection(self._name, vectors_config={vector: params}, metadata=metadata)

    def add_vector(self, vector: str, dim: int, like: str) -> None:
        """A further vector, compared as another one is. Servers know this since 1.18."""
        distance = self._models.Distance(self.vectors()[like][1])
        with self._structure("add a vector (a server needs to be Qdrant 1.18 or later)"):
            config = self._models.DenseVectorConfig(size=dim, distance=distance)
            self._client.create_vector_name(self._name, vector, self._models.DenseVectorNameConfig(dense=config))

    def drop_vector(self, vector: str) -> None:
        """Delete a vector of all points; nothing happens where it is gone."""
        with self._structure("delete a vector"):
            self._client.delete_vector_name(self._name, vector)

    def count(self, has: Sequence[str], has_not: Sequence[str]) -> int:
        """Points that have all of these vectors and none of those."""
        with self._told("count"):
            return int(self._client.count(self._name, count_filter=self._filter(has, has_not), exact=True).count)

    def scroll(self, standing: Vectors, limit: int, start: Id | None, vectors: list[str]) -> list[Point]:
        """Points in the order of their ids, from `start` on."""
        with self._told("read points"):
            found, _ = self._client.scroll(
                self._name, self._filter(*standing), limit=limit, offset=start, with_payload=False, with_vectors=_some(vectors)
            )
        return [_point(one) for one in found]

    def retrieve(self, ids: Sequence[Id], vectors: list[str]) -> list[Point]:
        """Those of these points that exist."""
        with self._told("read points"):
            found = self._client.retrieve(self._name, list(ids), with_payload=False, with_vectors=_some(vectors))
        return [_point(one) for one in found]

    def among(self, ids: Sequence[Id], vectors: Sequence[str]) -> list[Point]:
        """Those of these points that have one of the vectors."""
        m = self._models
        where = m.Filter(must=[m.HasIdCondition(has_id=list(ids))], should=[m.HasVectorCondition(has_vector=v) for v in vectors])
        with self._told("read points"):
            found, _ = self._client.scroll(self._name, where, limit=max(len(ids), 1), with_payload=False, with_vectors=False)
        return [_point(one) for one in found]

    def insert(self, vector: str, rows: Sequence[tuple[Id, Floats]]) -> None:
        """New points."""
        if rows:
            points = [self._models.PointStruct(id=name, vector=_wire(vector, row), payload={}) for name, row in rows]
            with self._told("add points"):
                self._client.upsert(self._name, points, wait=True)

    def update(self, vector: str, rows: Sequence[tuple[Id, Floats]]) -> None:
        """One vector of points that exist; payload and other vectors stay."""
        if rows:
            points = [self._models.PointVectors(id=name, vector=_wire(vector, row)) for name, row in rows]
            with self._told("write vectors"):
                self._client.update_vectors(self._name, points, wait=True)

    def delete(self, ids: Sequence[Id]) -> None:
        """Points go."""
        with self._told("remove points"):
            self._client.delete(self._name, self._models.PointIdsList(points=list(ids)), wait=True)

    def nearest(self, vector: str, queries: Floats, k: int, standing: Vectors) -> list[list[tuple[float, Id]]]:
        """(cosine, id) of the k nearest points for each query; asked for exactly where the index gives fewer."""
        known = self.vectors()
        if vector not in known:
            raise StoreError(f"{self.where} has no vector '{vector}' any more: another program has deleted it; roll back.")
        distance = known[vector][1]
        found = self._query(vector, queries, k, standing, exact=False)
        if self._remote and any(len(one) < k for one in found):
            found = self._query(vector, queries, k, standing, exact=True)
        euclid = distance == "Euclid"
        return [[(1 - p.score**2 / 2 if euclid else p.score, p.id) for p in one] for one in found]

    def close(self) -> None:
        """Give back the connection, or the folder."""
        self._client.close()

    def _query(self, vector: str, queries: Floats, k: int, standing: Vectors, *, exact: bool) -> list[list[Any]]:
        m = self._models
        asked = [
            m.QueryRequest(
                query=row.tolist(),
                using=vector or None,
                filter=self._filter(*standing),
                params=m.SearchParams(exact=True) if exact else None,
                limit=k,
            )
            for row in queries
        ]
        with self._told("search"):
            return [one.points for one in self._client.query_batch_points(self._name, asked)] if asked else []

    def _filter(self, has: Sequence[str], has_not: Sequence[str]) -> Any:
        condition = self._models.HasVectorCondition
        return self._models.Filter(
            must=[condition(has_vector=v) for v in has], must_not=[condition(has_vector=v) for v in has_not] or None
        )

    def _info(self) -> Any:
        with self._told("read the collection"):
            return self._client.get_collection(self._name)

    @contextlib.contextmanager
    def _structure(self, doing: str) -> Iterator[None]:
        """As `_told`, for changes of the collection itself: local mode makes them in memory before it writes them.

        Where writing fails the folder is read again, so that memory says what the folder says.
        """
        try:
            with self._told(doing):
                yield
        except StoreError:
            if not self._remote:
                self._client.close()
                if (Path(self._location) / _META).is_file():  # or it would be made anew
                    with contextlib.suppress(StoreError), self._told("open"):
                        self._client = _local(self._package, self._location)
            raise

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        failed = extras.require("qdrant_client.http.exceptions", "qdrant").ApiException
        try:
            yield
        except InstarError:
            raise
        except (failed, sqlite3.Error, OSError, RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:240].rstrip(".") or type(error).__name__
            raise StoreError(f"{self.where} failed ({doing}): {reason}.") from error


def _local(package: Any, folder: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Local mode is not recommended")
            return package.QdrantClient(path=folder)
    except RuntimeError as error:
        raise StoreError(
            f"The folder {folder} is in use: Qdrant's local mode lets one process at a time in, readers included. Close the "
            "other one, or run a Qdrant server and give its address."
        ) from error
    except OSError:
        raise
    except Exception as error:  # of files that are unpickled, whatever is in them
        raise StoreError(f"The folder {folder} cannot be read by Qdrant's local mode ({error!r}): restore it.") from error


def _key(location: str) -> str | None:
    """The key goes over https or to this machine only."""
    address = urlsplit(location)
    safe = address.scheme == "https" or address.hostname in ("localhost", "127.0.0.1", "::1")
    return os.environ.get("QDRANT_API_KEY") if safe else None


def _some(vectors: list[str]) -> Any:
    """What `with_vectors` is given: a server knows no name for the unnamed vector."""
    return True if "" in vectors else vectors or False


def _point(record: Any) -> Point:
    vector = record.vector
    return Point(record.id, {"": vector} if isinstance(vector, list) else dict(vector or {}))


def _wire(vector: str, row: Floats) -> Any:
    return {vector: row.tolist()} if vector else row.tolist()
