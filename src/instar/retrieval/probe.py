"""Queries whose answers are known, asked again and again while an index changes."""

from __future__ import annotations

from collections.abc import Collection as Those
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from instar.errors import DataError, GenerationError, ShapeError
from instar.interfaces import Floats, Fusion, Id, Index

Curve = Sequence[tuple[float, float]]
"""(share of re-encoded rows, recall), by share."""


@dataclass(frozen=True)
class Probe:
    """Realised recall at k of queries with known relevance, held against what was predicted."""

    queries: Mapping[int, Floats]
    """Generation -> the queries [Q, dim], as for `Index.search`."""
    relevant: Sequence[Those[Id]]
    """[Q] ids of what should be found, at least one each; compared as texts."""
    k: int = 10
    fusion: Fusion = "cosine"
    every: float = 0.05
    """Share of the rows between two measurements."""
    predicted: Curve | None = None
    """From the report; None expects no less than the first measurement."""
    margin: float | None = 0.05
    """How far recall may lie below the expected one; None never stops."""

    def __post_init__(self) -> None:
        if not self.relevant or any(len(those) == 0 for those in self.relevant):
            raise DataError("A probe expects queries with at least one relevant row each.")
        if any(len(vectors) != len(self.relevant) for vectors in self.queries.values()):
            sizes = {number: len(vectors) for number, vectors in self.queries.items()}
            raise ShapeError(f"A probe expects {len(self.relevant)} queries in every generation; received {sizes}.")
        if self.k < 1 or not 0 < self.every <= 1 or (self.margin is not None and self.margin < 0):
            raise ShapeError(
                f"A probe expects k of 1 or more, `every` in (0, 1] and a margin of 0 or more; received {self.k}, {self.every} "
                f"and {self.margin}."
            )

    def recall(self, index: Index) -> float:
        """Mean over the queries: the share of the relevant rows (of the first k, where there are more) among the first k."""
        hits = index.search(self.queries, self.k, self.fusion)
        found = []
        for row, those in zip(hits.ids, self.relevant, strict=True):
            wanted = {str(one) for one in those}
            found.append(len(wanted & {str(one) for one in row if one is not None}) / min(len(wanted), self.k))
        return float(np.mean(found))

    def expected(self, fraction: float, first: float) -> float:
        """Recall at a share of re-encoded rows: as predicted, or as it was at the `first` measurement."""
        if not self.predicted:
            return first
        shares, values = zip(*sorted(self.predicted), strict=True)
        return float(np.interp(fraction, shares, values))

    def judge(self, fraction: float, recall: float, first: float) -> None:
        """Raises GenerationError when recall has fallen too far."""
        expected = self.expected(fraction, first)
        if self.margin is not None and recall < expected - self.margin:
            whose = "the report predicted" if self.predicted else "was measured at first"
            raise GenerationError(
                f"Recall@{self.k} of the probe is {recall:.3f} with {fraction:.1%} of the rows re-encoded; {expected:.3f} "
                f"{whose}, and {self.margin:g} less is allowed. The backfill has stopped and every row is searchable. Compare "
                "another fusion, go on without this margin, or take the change back with `rollback`."
            )
