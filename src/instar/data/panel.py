"""Series on one grid of times: what forecasters learn from and what a forecast starts at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instar.data.time_grid import Grid, counted
from instar.errors import DataError, ShapeError

Values = NDArray[np.float64]
Id = int | str


@dataclass(frozen=True)
class Panel:
    """T rows of N series, NaN where a value is missing, with C covariates that may reach beyond the last row.

    Raises ShapeError for parts that do not fit, DataError for infinite values.
    """

    ids: tuple[Id, ...]
    values: Values
    """[T, N]."""
    grid: Grid
    ends: tuple[int, ...]
    """For each series the row after its last one: where its forecast begins."""
    covariates: Values
    """[T + F, C]; rows after T hold what is known of the future."""
    names: tuple[str, ...] = ()
    """Of the covariates."""
    known: tuple[bool, ...] = ()
    """Whether the future of each covariate is known."""

    def __post_init__(self) -> None:
        T, N = self.values.shape if self.values.ndim == 2 else (-1, -1)
        fits = N == len(self.ids) == len(self.ends) > 0 and self.covariates.ndim == 2 and len(self.covariates) >= T
        if not fits or not self.covariates.shape[1] == len(self.names) == len(self.known):
            raise ShapeError(
                f"A panel has values [T, N], N ids and ends, covariates [T or more, C]; received {self.values.shape}, "
                f"{len(self.ids)}, {len(self.ends)} and {self.covariates.shape}."
            )
        if len(set(self.ids)) < N:
            raise DataError(f"Two series have the same name among {', '.join(map(str, self.ids[:8]))}.")
        for what, found in (("value", self.values), ("covariate", self.covariates)):
            if np.isinf(found).any():
                row, column = np.argwhere(np.isinf(found))[0]
                name = self.ids[column] if what == "value" else self.names[column]
                raise DataError(f"The {what} of {name} is infinite in row {row}. Remove it, or leave it empty.")

    def __len__(self) -> int:
        """T."""
        return len(self.values)

    def until(self, row: int) -> Panel:
        """The rows before `row`, and of what follows only the covariates whose future is known."""
        covariates = self.covariates.copy()
        covariates[row:, [not known for known in self.known]] = np.nan
        ends = tuple(min(end, row) for end in self.ends)
        return dataclasses.replace(self, values=self.values[:row], covariates=covariates, ends=ends)

    def tail(self, rows: int) -> Panel:
        """The last `rows` rows before the earliest end, and all after it."""
        first = max(0, min(self.ends) - rows)
        return dataclasses.replace(
            self,
            values=self.values[first:],
            grid=self.grid.later(first),
            ends=tuple(end - first for end in self.ends),
            covariates=self.covariates[first:],
        )

    def select(self, ids: Sequence[Id]) -> Panel:
        """These series, in this order."""
        places = [self.ids.index(name) for name in ids]
        ends = tuple(self.ends[place] for place in places)
        return dataclasses.replace(self, ids=tuple(ids), values=self.values[:, places], ends=ends)


def of_array(values: NDArray[np.generic]) -> Panel:
    """A panel of an array [T] or [T, N], series named 0, 1, … and times counted. Raises ShapeError, DataError."""
    found = np.asarray(values)
    if found.ndim not in (1, 2) or not found.size or found.dtype.kind not in "fiub":
        raise ShapeError(f"An array of series has numbers [T] or [T, N]; received {found.dtype} {found.shape}.")
    found = found.astype(np.float64).reshape(len(found), -1)
    T, N = found.shape
    return Panel(tuple(map(str, range(N))), found, counted(), (T,) * N, np.zeros((T, 0)))
