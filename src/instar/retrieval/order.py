"""In which order rows are re-encoded: a pure function of row and seed, so that what was interrupted goes on in the same order.

An order gives every row a key; the smallest goes first, and rows with equal keys follow each other by a seeded hash of their ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError
from instar.gate import rows
from instar.gate.values import number
from instar.interfaces import Floats, Id, Index
from instar.retrieval.uncertainty import Uncertainty

Keys = NDArray[np.float64]
_PAGE = 10_000


class Order(Protocol):
    """Keys [N] of rows that an index holds: the smallest goes first."""

    def __call__(self, index: Index, ids: Sequence[Id]) -> Keys: ...


def arrange(index: Index, ids: Sequence[Id], order: Order, seed: int = 0) -> list[Id]:
    """The ids in their order: by key, then by a hash of seed and id. O(N log N)."""
    keys = order(index, ids)
    if len(keys) != len(ids) or np.isnan(keys).any():
        raise DataError(f"An order gives each row a key that is a number; received {len(keys)} keys for {len(ids)} rows.")
    ties = np.array([_hash(name, seed) for name in ids], dtype=np.uint64)
    return [ids[i] for i in np.lexsort((ties, keys))]


def random(index: Index, ids: Sequence[Id]) -> Keys:
    """All keys equal: the hash alone decides. Every share of the rows is then a fair sample of them, as the report assumes."""
    return np.zeros(len(ids))


def most_queried(counts: Mapping[str, float]) -> Order:
    """Rows that are found or asked for most often go first; rows without a count, last.

    counts: the id as text -> how often. Raises DataError for counts that are negative or no numbers.
    """
    for name, count in counts.items():
        if not np.isfinite(count) or count < 0:
            raise DataError(f"A count is a number that is not negative; row {name} has {count}.")

    def keys(index: Index, ids: Sequence[Id]) -> Keys:
        return -np.array([counts.get(str(name), 0.0) for name in ids], dtype=np.float64)

    return keys


def counts(path: Path) -> dict[str, float]:
    """How often each row is asked for, from a file with columns `id` and `count`; lines of one id add up. Raises DataError."""
    columns = rows.columns(path)
    if lacking := [name for name in ("id", "count") if name not in columns]:
        raise DataError(f"{path} has no column {' and '.join(lacking)}; it has {', '.join(columns) or 'none'}.")
    found: dict[str, float] = {}
    for name, value in zip(columns["id"], columns["count"], strict=True):
        if (count := number(value)) is None:
            raise DataError(f"{path}: the count of id {name} is no number: {value!r}.")
        found[str(name)] = found.get(str(name), 0.0) + count
    return found


def least_certain(uncertainty: Uncertainty) -> Order:
    """Rows that the head's map explains worst go first, as in FastFill (Jaeckle et al., ICLR 2023).

    The key is read off the stored vector, which stays what it is until the row moves. Rows of another generation than the one
    that the estimate was made for are known to no map: they go before all others, and so do rows that have gone meanwhile.
    """

    def keys(index: Index, ids: Sequence[Id]) -> Keys:
        found = np.full(len(ids), -np.inf)
        numbers = {g.number for g in index.generations() if g.encoder == uncertainty.encoder}
        for start in range(0, len(ids), _PAGE):
            held = present(index, ids[start : start + _PAGE])
            known = {start + i: one[0] for i, one in enumerate(held) if one is not None and one[1] in numbers}
            if known:
                found[list(known)] = -uncertainty(np.stack(list(known.values())))
        return found

    return keys


def present(index: Index, ids: Sequence[Id]) -> list[tuple[Floats, int] | None]:
    """What counts of each row, and its generation; None for rows that another program has removed since they were listed."""
    try:
        return list(zip(*index.fetch(ids), strict=True))
    except DataError:
        half = len(ids) // 2
        return [*present(index, ids[:half]), *present(index, ids[half:])] if half else [None]


def _hash(name: Id, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
