"""What is searched, by what, and what is right: documents, queries and relevance, and their vectors under an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError
from instar.interfaces import Floats

Truth = Literal["queries", "labels", "neighbours"]


@dataclass(frozen=True)
class Collection:
    """Documents, and what is known of what should be found among them.

    - queries with relevant documents: the real thing;
    - labels of the documents: every document is a query, and those of its label are relevant (itself left out);
    - nothing: every document is a query, and right is what the new encoder itself would find (its nearest neighbours).
    """

    name: str
    ids: list[str]
    """[N], of the documents."""
    texts: list[str] | None = None
    """[N]; None where only vectors are known."""
    labels: list[Any] | None = None
    """[N] classes."""
    query_ids: list[str] = field(default_factory=list)
    queries: list[str] | None = None
    """[Q] texts of queries; None where there are none, or only their vectors are known."""
    relevant: list[NDArray[np.int64]] | None = None
    """[Q] places of the relevant documents, at least one each."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """Document id -> how often it was found or asked for, where the user knows."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For people: source, hash, how it was split into documents."""

    def __post_init__(self) -> None:
        n, q = len(self.ids), len(self.query_ids)
        if n == 0:
            raise DataError(f"{self.name} holds no document.")
        for what, values, length in (
            ("texts", self.texts, n), ("labels", self.labels, n), ("queries", self.queries, q), ("relevant", self.relevant, q),
        ):  # fmt: skip
            if values is not None and len(values) != length:
                raise DataError(f"{self.name}: {len(values)} {what} for {length}.")
        if len(set(self.ids)) != n:
            raise DataError(f"{self.name}: {n - len(set(self.ids))} ids of documents appear twice.")
        if len(set(self.query_ids)) != q:
            raise DataError(f"{self.name}: {q - len(set(self.query_ids))} ids of queries appear twice.")
        for name, places in zip(self.query_ids, self.relevant or (), strict=False):
            if len(places) == 0 or places.min() < 0 or places.max() >= n:
                raise DataError(f"{self.name}: query {name} has no relevant document, or one that is not there.")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def truth(self) -> Truth:
        """How it is known what is right."""
        return "queries" if self.relevant is not None else "labels" if self.labels is not None else "neighbours"

    def of(self, documents: Sequence[int] | NDArray[np.int64]) -> Collection:
        """These documents alone, with the queries that still have a relevant one among them."""
        places = np.asarray(documents, dtype=np.int64)
        where = np.full(len(self), -1, dtype=np.int64)
        where[places] = np.arange(len(places))
        kept = [where[r][where[r] >= 0] for r in self.relevant] if self.relevant is not None else []
        left = [i for i, r in enumerate(kept) if len(r)] if self.relevant is not None else list(range(len(self.query_ids)))

        def taken(values: Any, at: Any) -> Any:
            return None if values is None else [values[i] for i in at]

        return Collection(
            self.name,
            taken(self.ids, places),
            taken(self.texts, places),
            taken(self.labels, places),
            taken(self.query_ids, left),
            taken(self.queries, left),
            [kept[i] for i in left] if self.relevant is not None else None,
            self.counts,
            self.facts,
        )


@dataclass(frozen=True)
class Vectors:
    """A collection under one encoder."""

    name: str
    """How a person calls the encoder."""
    fingerprint: str
    documents: Floats
    """[N, D] unit rows, in the order of the collection."""
    queries: Floats | None = None
    """[Q, D] unit rows; None where the documents themselves are the queries."""
    document_seconds: float | None = None
    """Seconds that one document took to encode; None where nothing was encoded here."""
    query_seconds: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        return int(self.documents.shape[1])
