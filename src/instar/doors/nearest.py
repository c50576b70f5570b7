"""Search by vectors, for every door that has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BLOCK = 256
"""Queries that are scored at a time."""


def nearest(queries: NDArray[np.float32], documents: NDArray[np.float32], ids: Sequence[str], k: int) -> list[list[str]]:
    """For each query [D] the ids of the `k` most similar documents [N, D] by dot product, best first; of equals, the first."""
    found: list[list[str]] = []
    for start in range(0, len(queries), _BLOCK):
        likeness = queries[start : start + _BLOCK] @ documents.T
        found += [[ids[i] for i in order] for order in np.argsort(-likeness, axis=1, kind="stable")[:, :k]]
    return found
