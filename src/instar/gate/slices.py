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
from instar.gate.tasks import canonical, coded

Coded = dict[str, tuple[list[str], NDArray[np.int64]]]

MOST_VALUES = 200
"""A column of texts with more values than this tells items apart, not kinds of items."""
_QUARTERED = 12
"""A column of numbers with more values than this is cut at its quartiles."""


def code(columns: Mapping[str, Sequence[Json]]) -> tuple[Coded, dict[str, str]]:
    """Names and codes of every column that can be a slice, and why the others cannot."""
    found: Coded = {}
    left_out: dict[str, str] = {}
    for name, values in columns.items():
        distinct, codes = coded(values)
        present = [v for v in distinct if v is not None]
        numbers = [v for v in present if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if not present:
            left_out[name] = "every value is empty"
        elif any(isinstance(v, (list, dict)) for v in present):
            left_out[name] = "it holds lists or objects"
        elif len(numbers) == len(present) and len(present) > _QUARTERED:
            found[name] = _quarters(distinct, codes)
        elif len(distinct) > MOST_VALUES:
            left_out[name] = f"it has {len(distinct)} different values, more than {MOST_VALUES}"
        else:
            found[name] = (["(empty)" if v is None else canonical(v) for v in distinct], codes)
    return found, left_out


def measure(flips: Flips, found: Coded, level: float) -> list[Slice]:
    """Every slice of every column over the answered items (`found` restricted to them), the most suspicious first."""
    rows: list[Slice] = []
    for column, (names, codes) in found.items():
        size = len(names)
        items = np.bincount(codes, minlength=size)
        before, after = (np.bincount(codes, weights=w, minlength=size) for w in (flips.before, flips.after))
        negative, positive = (np.bincount(codes[w], minlength=size) for w in (flips.negative, flips.positive))
        low, high = intervals.share_interval(negative, np.maximum(items, 1), level)
        p = intervals.mcnemar(negative, positive)
        for i, name in enumerate(names):
            n = int(items[i])
            if n == 0:
                continue
            figure = Figure(float(negative[i] / n), float(low[i]), float(high[i]))
            if flips.blocks is not None:
                inside = flips.of(codes == i)
                figure = share(inside.negative, inside.blocks, level)
            rows.append(
                Slice(
                    column,
                    name,
                    n,
                    float(before[i] / n),
                    float(after[i] / n),
                    int(negative[i]),
                    int(positive[i]),
                    figure,
                    float(p[i]),
                )
            )
    adjusted = intervals.holm([row.p for row in rows])
    rows = [Slice(**{**vars(row), "p": float(p)}) for row, p in zip(rows, adjusted, strict=True)]
    return sorted(
        rows, key=lambda r: (r.p if r.negative > r.positive else 2 - r.p, -(r.nfr.low or 0.0), -r.nfr.value, r.column, r.value)
    )


def _quarters(distinct: list[Json], codes: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    values = np.array([np.nan if v is None else float(v) for v in distinct])[codes]
    edges = np.unique(np.nanquantile(values, [0.25, 0.5, 0.75]))
    bins = np.searchsorted(edges, values, side="left")
    bins[np.isnan(values)] = len(edges) + 1
    names = [
        f"≤ {edges[0]:g}",
        *(f"{a:g} … {b:g}" for a, b in itertools.pairwise(edges)),
        f"> {edges[-1]:g}",
        "(empty)",
    ]
    return names, bins.astype(np.int64)
