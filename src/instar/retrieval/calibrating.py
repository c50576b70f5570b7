"""A calibration of scores that needs nothing but the index: its rows stand in for queries."""

from __future__ import annotations

import numpy as np

from instar.errors import DataError
from instar.interfaces import Floats, Id, Index
from instar.retrieval.fusion import Calibration
from instar.retrieval.order import present

_FEWEST = 16
"""Rows of a generation below which its scores stay as they are."""
_PAGE = 10_000


class FromRows:
    """A fusion by quantiles of cosines between rows of one generation, as they stand at the moment.

    Rows ask otherwise than queries do, but by and large in the same way under both encoders; where real queries are at hand,
    `fusion.Calibration.fit` on their scores is a little better. Which rows move first must not depend on what they say (order
    `random`), or the two generations are no samples of the same texts.

    Args:
        sample: rows that are drawn, once. seed: which. Drawing is O(N); a call fetches the sample and costs O(sample² dim).
    """

    def __init__(self, index: Index, sample: int = 1024, seed: int = 0) -> None:
        self.index = index
        names: list[Id] = []
        for generation in index.generations():
            after: Id | None = None
            while page := index.ids(generation.number, after=after, limit=_PAGE):
                names += page
                after = page[-1]
        draw = np.random.default_rng(seed).permutation(len(names))[:sample]
        self.names = [names[i] for i in draw]

    def __call__(self, generation: int, scores: Floats) -> Floats:
        """The scores on the scale of the oldest generation that holds enough rows."""
        cosines = self._cosines()
        if generation not in cosines or len(cosines) < 2:
            return scores
        try:
            return Calibration.fit(cosines)(generation, scores)
        except DataError:  # all rows of a generation are equal
            return scores

    def _cosines(self) -> dict[int, Floats]:
        held = [one for one in present(self.index, self.names) if one is not None]
        found = {}
        for number in sorted({number for _, number in held}):
            rows = np.stack([vector for vector, other in held if other == number])
            if len(rows) >= _FEWEST:
                found[number] = (rows @ rows.T)[~np.eye(len(rows), dtype=bool)]
        return found
