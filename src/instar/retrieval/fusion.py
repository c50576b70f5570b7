"""One list from several generations, whose scores need not mean the same.

Cosines of two encoders are distributed differently: of unrelated texts one gives 0.0, another 0.7. What is new would then outrank
everything that is old, or nothing. Three ways out: compare the cosines as they are (right where a head made the spaces one),
bring them to one scale by quantiles (`Calibration`), or compare places in the lists (`rank`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError, GenerationError, RecordError, ShapeError
from instar.interfaces import Floats, Fusion, Hits, Index
from instar.retrieval import checking

_ATTEMPTS = 5
_FAR = 1e6
"""Ranges of the scores that were seen up to which lines go on beyond them."""
_LEVELS = np.concatenate([np.linspace(0, 0.9, 46), 1 - 0.1 * 0.75 ** np.arange(1, 41)])
"""Quantiles that a calibration keeps: evenly, and ever closer to 1, where the best of many rows stand (up to 1 − 1e-6)."""


def search(index: Index, queries: Mapping[int, Floats], k: int, fusion: Fusion = "cosine") -> Hits:
    """The k best rows over all generations (see `Index.search`).

    Older generations are read first and the newest vector of a row wins: a row that moves meanwhile is seen once. A change of the
    generations themselves (a rollback, an end) makes the search start again.
    """
    checking.results(k)
    for _ in range(_ATTEMPTS):
        before = index.generations()
        asked = [g for g in before if g.number in queries]
        if lacking := [g for g in before if g.number not in queries and index.counts().get(g.number)]:
            raise GenerationError(
                f"The index holds rows of {_named(lacking)}, for which there is no query; received queries for "
                f"{', '.join(map(str, sorted(queries))) or 'none'}. Give one, for example by a head's project(x, generation)."
            )
        try:
            found = [index.nearest(g.number, queries[g.number], k) for g in asked]
        except GenerationError:
            if index.generations() == before:
                raise
            continue
        if index.generations() == before:
            return merge(found, k, fusion)
    raise GenerationError("The generations of the index changed during every one of 5 searches; try again when that is over.")


def merge(lists: list[Hits], k: int, fusion: Fusion = "cosine") -> Hits:
    """One list from one list a generation, the oldest first; of a row that stands in several the newest counts."""
    if not lists:
        raise GenerationError("The index holds no generation that was asked for.")
    if len(lists) == 1 and fusion == "cosine":
        return lists[0]
    if len({one.ids.shape for one in lists}) > 1:
        sizes = ", ".join(str(len(one.ids)) for one in lists)
        raise ShapeError(f"Every generation expects the same queries, in its own encoding; received {sizes} of them.")
    ids = np.concatenate([one.ids for one in lists], 1)
    generations = np.concatenate([one.generations for one in lists], 1)
    scores = np.concatenate([_comparable(one, fusion) for one in lists], 1)
    scores = np.where(generations < 0, -np.inf, scores)
    for row, names in enumerate(ids.tolist()):
        if len(set(names)) == len(names):  # as nearly always: a row stands in several lists only while it moves
            continue
        seen: dict[Any, int] = {}
        for place, name in enumerate(names):
            if name is None:
                continue
            if name in seen:
                scores[row, seen[name]] = -np.inf
                ids[row, seen[name]], generations[row, seen[name]] = None, -1
            seen[name] = place
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Hits(*(np.take_along_axis(part, best, 1) for part in (scores.astype(np.float32), ids, generations)))


def _comparable(hits: Hits, fusion: Fusion) -> Floats:
    if fusion == "rank":
        return np.broadcast_to(-np.arange(hits.scores.shape[1], dtype=np.float32), hits.scores.shape)
    if fusion == "cosine" or not (hits.generations >= 0).any():
        return hits.scores
    if not callable(fusion):
        raise ShapeError(f"A fusion is 'cosine', 'rank' or a calibration; received {fusion!r}.")
    number = int(hits.generations.max())
    scores = np.asarray(fusion(number, hits.scores))
    if scores.shape != hits.scores.shape:
        raise ShapeError(f"A fusion gives a score for each of {list(hits.scores.shape)}, received {list(scores.shape)}.")
    return np.where(hits.generations >= 0, scores, -np.inf).astype(np.float32)


@dataclass(frozen=True)
class Calibration:
    """Scores of every generation on the scale of one of them: equal quantiles among random pairs become equal scores.

    Monotone within a generation, so that the order of its own rows stays. Beyond the largest score that was seen the line of the
    last quantiles goes on. Fitted without any relevance: scores of queries with random documents are enough.
    """

    reference: int
    quantiles: Mapping[int, NDArray[np.float64]]
    """Generation -> its scores at the kept quantiles, increasing."""

    @classmethod
    def fit(cls, scores: Mapping[int, Floats], reference: int | None = None) -> Calibration:
        """From scores of the same queries with the same random documents under each generation.

        reference: whose scale the others are brought to; the oldest by default. Raises DataError for scores without spread.
        """
        reference = min(scores) if reference is None else reference
        kept = {}
        for number, values in scores.items():
            found = np.quantile(np.asarray(values, dtype=np.float64), _LEVELS)
            if not np.isfinite(found).all() or found[-1] - found[0] <= 0:
                raise DataError(f"The scores of generation {number} have no spread, so their quantiles say nothing.")
            # Ties would make the line vertical: the smallest step keeps it a function.
            kept[number] = np.maximum.accumulate(found + np.arange(len(found)) * 1e-9 * (found[-1] - found[0]))
        return cls(reference, kept)

    def __call__(self, generation: int, scores: Floats) -> Floats:
        """The scores on the scale of the reference. Raises GenerationError for a generation that was not fitted."""
        if generation == self.reference:
            return scores
        if generation not in self.quantiles:
            raise GenerationError(f"There is no calibration for generation {generation}, only for {sorted(self.quantiles)}.")
        x, y = self.quantiles[generation], self.quantiles[self.reference]
        # A knot far out on either side continues the lines of the last quantiles: one look-up, not three.
        far = _FAR * (x[-1] - x[0])
        low, high = ((y[b] - y[a]) / (x[b] - x[a]) for a, b in ((0, 4), (-5, -1)))
        knots = np.concatenate([[x[0] - far], x, [x[-1] + far]])
        values = np.concatenate([[y[0] - far * low], y, [y[-1] + far * high]])
        return np.interp(scores, knots, values).astype(np.float32)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"reference": self.reference, "quantiles": {str(g): list(map(float, q)) for g, q in self.quantiles.items()}}

    @classmethod
    def of_json(cls, table: Any) -> Calibration:
        """What `as_json` gave. Raises RecordError."""
        try:
            quantiles = {int(g): np.asarray(q, dtype=np.float64) for g, q in table["quantiles"].items()}
            found = cls(int(table["reference"]), quantiles)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(f"This is no calibration: {error!r}.") from error
        steps = [len(q) == len(_LEVELS) and bool((np.diff(q) > 0).all()) for q in quantiles.values()]
        if found.reference not in quantiles or not all(steps):
            raise RecordError("This is no calibration: its quantiles do not increase, or lack those of its reference.")
        return found


def _named(generations: list[Any]) -> str:
    return ", ".join(f"generation {g.number}" + (f" ({g.name})" if g.name else "") for g in generations)
