"""Slices: the items that share a value of a column, for any column that has few values or can be cut into quarters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from instar.gate import intervals
from instar.gate.flips import Flips, share
from instar.gate.predictions import Json
from instar.gate.result import Figure, Slice
from instar.gate.values import canonical, coded, named, number

Coded = dict[str, tuple[list[str], NDArray[np.int64]]]
"""Column -> names of its slices, and of each item the place of its name."""

MOST_VALUES = 200
"""A column of texts with more values than this tells items apart, not kinds of items."""
_MOST_SLICES = 5000
_QUARTERED = 12
"""A column of numbers with more values than this is cut at its quartiles."""


def code(columns: Mapping[str, Sequence[Json]]) -> tuple[Coded, dict[str, str]]:
    """Names and codes of every column that can be a slice, and why the others cannot."""
    found: Coded = {}
    left_out: dict[str, str] = {}
    left = _MOST_SLICES
    for name, values in columns.items():
        distinct, _ = coded(values)
        present = [v for v in distinct if v is not None]
        numbers = {v: x for v in present if not isinstance(v, (list, dict)) and (x := number(v)) is not None}
        if not present:
            left_out[name] = "every value is empty"
        elif any(isinstance(v, (list, dict)) for v in present):
            left_out[name] = "it holds lists or objects"
        elif len(numbers) == len(present) and len(present) > _QUARTERED:
            found[name] = _quarters(values, numbers)
        else:
            names, codes = named(values)
            if len(names) > MOST_VALUES:
                left_out[name] = f"it has {len(names)} different values, more than {MOST_VALUES}"
            elif len(names) == 1 < len(values):
                left_out[name] = f"every item has the value {names[0][:60]}"
            else:
                found[name] = names, codes
        left -= len(found[name][0]) if name in found else 0
        if left < 0:
            del found[name]
            left_out[name] = f"there are more than {_MOST_SLICES} slices; drop some columns"
            left = 0
    return found, left_out


def parts(codes: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """The places of the items of each code below `size`."""
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=size))[:-1])


def measure(flips: Flips, found: Coded, level: float) -> list[Slice]:
    """Every slice of every column over the answered items (`found` restricted to them), the most suspicious first."""
    rows: list[Slice] = []
    for column, (names, codes) in found.items():
        size = len(names)
        items = np.bincount(codes, minlength=size)
        before, after = (np.bincount(codes, weights=w, minlength=size) for w in (flips.before, flips.after))
        negative, positive = (np.bincount(codes[w], minlength=size) for w in (flips.negative, flips.positive))
        figures = (
            _in_blocks(flips, flips.blocks, codes, size, level) if flips.blocks is not None else _single(negative, items, level)
        )
        p = intervals.mcnemar(negative, positive)
        for i in np.flatnonzero(items):
            n = int(items[i])
            marks = float(before[i] / n), float(after[i] / n)
            rows.append(Slice(column, names[i], n, *marks, int(negative[i]), int(positive[i]), figures[i], float(p[i])))
    adjusted = intervals.holm([row.p for row in rows])
    rows = [Slice(**{**vars(row), "p": float(p)}) for row, p in zip(rows, adjusted, strict=True)]
    return sorted(
        rows, key=lambda r: (r.p if r.negative > r.positive else 2 - r.p, -(r.nfr.low or 0.0), -r.nfr.value, r.column, r.value)
    )


def _single(negative: NDArray[np.int64], items: NDArray[np.int64], level: float) -> list[Figure]:
    low, high = intervals.share_interval(negative, np.maximum(items, 1), level)
    return [Figure(float(k / max(n, 1)), float(a), float(b)) for k, n, a, b in zip(negative, items, low, high, strict=True)]


def _in_blocks(flips: Flips, blocks: NDArray[np.int64], codes: NDArray[np.int64], size: int, level: float) -> list[Figure]:
    found = []
    for places in parts(codes, size):
        inside = np.unique(blocks[places], return_inverse=True)[1].astype(np.int64)
        found.append(share(flips.negative[places], inside, level) if len(places) else Figure(0.0))
    return found


def _quarters(values: Sequence[Json], numbers: Mapping[Json, float]) -> tuple[list[str], NDArray[np.int64]]:
    found = np.array([np.nan if v is None else numbers[v] for v in values])
    edges = np.unique(np.nanquantile(found, [0.25, 0.5, 0.75], method="inverted_cdf"))
    bins = np.searchsorted(edges, found, side="left")
    bins[np.isnan(found)] = len(edges) + 1
    ends = [canonical(float(edge)) for edge in edges]
    names = [f"≤ {ends[0]}", *(f"{a} … {b}" for a, b in itertools.pairwise(ends)), f"> {ends[-1]}", "(empty)"]
    there, codes = np.unique(bins, return_inverse=True)
    return [names[i] for i in there], codes.astype(np.int64)
