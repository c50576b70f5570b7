"""An index from its address."""

from __future__ import annotations

import inspect
from typing import Any

from instar.errors import DataError, UnknownNameError
from instar.interfaces import Generation, Index

ADDRESSES = (
    "exact:FOLDER, FILE.faiss or faiss:FILE, FILE.usearch or usearch:FILE, qdrant:PATH_OR_URL#COLLECTION, "
    "postgresql://…#TABLE, lancedb:PATH#TABLE"
)


def open_index(url: str, *, create: Generation | None = None, readonly: bool = False) -> Index:
    """Open an index that is stamped (see `adopt_index`).

    url: see ADDRESSES. create: where there is none yet, make one without rows, of this generation; one that exists has to be of
    it. Raises DataError for another address, GenerationError for an index without a stamp or of another encoder, StoreError,
    MissingExtraError.
    """
    kind, location, name = _parsed(url)
    found: Index = _kind(kind).open(location, name, create=create, readonly=readonly)
    return found


def adopt_index(url: str, generation: Generation, **options: Any) -> Index:
    """Say once which encoder made the vectors of an index that exists, and open it.

    options: those of the kind, such as `ids` for vectors whose ids stand in a file of their own. Nothing of what the store holds
    is changed. Raises what `open_index` raises, DataError for vectors that are not unit vectors, UnknownNameError for an option
    that the kind does not have.
    """
    kind, location, name = _parsed(url)
    adopt = _kind(kind).adopt
    known = [one.name for one in inspect.signature(adopt).parameters.values() if one.kind is one.KEYWORD_ONLY]
    if wrong := [one for one in options if one not in known]:
        raise UnknownNameError.among(f"option of {kind}", wrong[0], known)
    found: Index = adopt(location, name, generation, **options)
    return found


def _parsed(url: str) -> tuple[str, str, str]:
    """kind, location, name within it."""
    if url.startswith(("postgresql://", "postgres://")):
        location, _, name = url.partition("#")
        return _named("postgresql", location, name, url)
    kind, colon, rest = url.partition(":")
    if colon and kind in ("exact", "faiss", "usearch") and rest:
        return kind, rest, ""
    if colon and kind in ("qdrant", "lancedb"):
        location, _, name = rest.rpartition("#")
        return _named(kind, location, name, url)
    for suffix in ("faiss", "usearch"):
        if url.endswith(f".{suffix}"):
            return suffix, url, ""
    raise DataError(f"'{url}' is no address of an index. Known are {ADDRESSES}.")


def _named(kind: str, location: str, name: str, url: str) -> tuple[str, str, str]:
    if not location or not name:
        raise DataError(f"'{url}' names no {'collection' if kind == 'qdrant' else 'table'}; it goes behind '#': {ADDRESSES}.")
    return kind, location, name


def _kind(kind: str) -> Any:
    """The class; what it needs is imported when it opens."""
    if kind == "exact":
        from instar.retrieval.exact import ExactIndex

        return ExactIndex
    if kind == "faiss":
        from instar.retrieval.faiss_index import FaissIndex

        return FaissIndex
    if kind == "usearch":
        from instar.retrieval.usearch_index import UsearchIndex

        return UsearchIndex
    if kind == "qdrant":
        from instar.retrieval.qdrant_store import QdrantIndex

        return QdrantIndex
    if kind == "lancedb":
        from instar.retrieval.lancedb_store import LanceIndex

        return LanceIndex
    from instar.retrieval.postgres_store import PostgresIndex

    return PostgresIndex
