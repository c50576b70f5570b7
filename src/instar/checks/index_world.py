"""What an index should hold and find at any stage of a change, by brute force in float64."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from instar.errors import ContractError
from instar.interfaces import Floats, Generation, Hits, Id, Index
from instar.retrieval.opening import open_index

OLD, NEW = Generation(0, "a" * 64, 24, "old"), Generation(1, "b" * 64, 32, "new")


def open_address(url: str, readonly: bool = False) -> Index:
    """The usual way."""
    return open_index(url, readonly=readonly)


def make_exact(generation: Generation, ids: Sequence[Id], vectors: Floats) -> str:
    """A new exact index with these rows; returns its address. The pattern for `Stores.make`."""
    url = f"exact:{tempfile.mkdtemp(dir=_place().name)}"
    with open_index(url, create=generation) as index:
        index.add(ids, vectors, generation.number)
    return url


@functools.cache
def _place() -> tempfile.TemporaryDirectory[str]:
    """Deleted when the process ends."""
    return tempfile.TemporaryDirectory(prefix="instar-check-")


@dataclass(frozen=True)
class Stores:
    """The kind of store under test. `open` has to be importable by name, since other processes call it too."""

    make: Callable[[Generation, Sequence[Id], Floats], str] = make_exact
    """Makes a new index, elsewhere at each call, that holds these rows; returns an address for `open`."""
    open: Callable[[str, bool], Index] = open_address
    """(address, readonly) -> the index."""
    ids: Literal["int", "str"] = "str"
    recall: float = 1.0
    """Mean share of the true k nearest that a search has to find; 1 for exact stores."""
    tolerance: float = 1e-4
    """Of scores and coordinates; more where the store rounds vectors."""
    processes: bool = True
    """Whether others may read while one writes."""
    whole: bool = True
    """Whether a batch that is interrupted is there as a whole or not at all; else each of its rows is."""
    rows: int = 400


@dataclass
class World:
    """N rows under both encoders, and which of them have moved or are gone."""

    stores: Stores
    seed: int = 0
    moved: NDArray[np.bool_] = field(init=False)
    gone: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        n = self.stores.rows
        generator = np.random.default_rng(self.seed)
        self.old, old_queries = _clustered(generator, n, OLD.dim)
        self.new, new_queries = _clustered(generator, n, NEW.dim)
        self.queries = {0: old_queries, 1: new_queries}
        for rows, queries in (
            (self.old, old_queries),
            (self.new, new_queries),
        ):  # texts that stand there twice, and are asked for
            rows[-3:], queries[0] = rows[0], rows[0]
        self.ids: list[Any] = list(range(n)) if self.stores.ids == "int" else [f"row {i} é" for i in range(n)]
        self.moved, self.gone = np.zeros(n, bool), np.zeros(n, bool)

    def made(self) -> str:
        """The address of a new index with all rows in generation 0."""
        return self.stores.make(OLD, self.ids, self.old)

    def move(self, index: Index, places: NDArray[np.int64], *, batch: int = 64) -> None:
        """Move rows, in batches."""
        for start in range(0, len(places), batch):
            chosen = places[start : start + batch]
            index.move([self.ids[i] for i in chosen], self.new[chosen], 1)
            self.moved[chosen] = True

    def vector(self, place: int) -> Floats:
        """The one that counts."""
        return self.new[place] if self.moved[place] else self.old[place]

    def require(self, index: Index, stage: str) -> None:
        """Raises ContractError unless the index holds and finds exactly what it should."""
        self._require_rows(index, stage)
        for number in (0, 1):
            standing = ~self.gone & (self.moved == bool(number))
            if number in {g.number for g in index.generations()}:
                hits = index.nearest(number, self.queries[number], 10)
                self.require_hits(hits, standing, f"{stage}, nearest in generation {number}", 10)
        hits = index.search(self.queries, 10)
        self.require_hits(hits, ~self.gone, f"{stage}, search", 10)

    def require_hits(self, hits: Hits, standing: NDArray[np.bool_], stage: str, k: int) -> None:
        """Raises ContractError unless these are the k best among the rows of a mask."""
        true = np.where(self.moved, *(self.queries[g].astype(np.float64) @ v.T for g, v in ((1, self.new), (0, self.old))))
        place = {name: i for i, name in enumerate(self.ids)}
        found = np.zeros(true.shape, bool)
        if hits.scores.shape != (len(true), k) or hits.ids.shape != hits.scores.shape or hits.generations.shape != hits.ids.shape:
            raise ContractError(f"{stage}: expected {len(true)} x {k} scores, ids and generations, received {hits.scores.shape}.")
        for row, names in enumerate(hits.ids):
            there = [place.get(name, -1) for name in names if name is not None]
            if len(set(there)) != len(there):
                raise ContractError(f"{stage}: query {row} found a row twice: {list(names)}.")
            if wrong := [name for name in names if name is not None and not (name in place and standing[place[name]])]:
                raise ContractError(f"{stage}: query {row} found {wrong[0]!r}, which does not stand there.")
            if any(name is None for name in names[: len(there)]) or not np.isneginf(hits.scores[row, len(there) :]).all():
                raise ContractError(f"{stage}: where there are too few rows, the last ids are None and their scores −inf.")
            if (hits.generations[row] != [*self.moved[there], *[-1] * (k - len(there))]).any():
                raise ContractError(f"{stage}: query {row} says generations {hits.generations[row].tolist()}.")
            scores = hits.scores[row, : len(there)]
            if (np.abs(scores - true[row, there]) > self.stores.tolerance).any():
                raise ContractError(f"{stage}: the scores of query {row} are not the cosines: {scores} for {true[row, there]}.")
            if (np.diff(scores) > 0).any():
                raise ContractError(f"{stage}: the scores of query {row} are not sorted.")
            found[row, there] = True
        self._require_recall(true, found, standing, stage, k)

    def _require_recall(self, true: Any, found: Any, standing: NDArray[np.bool_], stage: str, k: int) -> None:
        k = min(k, int(standing.sum()))
        if not k or not len(true):
            return
        # A row as near as the k-th is as good: equals may come in any order.
        among = np.where(standing, true, -np.inf)
        last = np.sort(among, axis=1)[:, -k] - self.stores.tolerance
        recall = float(np.minimum((found & (among >= last[:, None])).sum(1) / k, 1).mean())
        if recall < self.stores.recall:
            raise ContractError(f"{stage}: found {recall:.4f} of the {k} nearest, expected at least {self.stores.recall}.")

    def _require_rows(self, index: Index, stage: str) -> None:
        held = [g.number for g in index.generations()]
        wanted = {g: int((~self.gone & (self.moved == bool(g))).sum()) for g in held}
        if dict(index.counts()) != wanted:
            raise ContractError(f"{stage}: counts says {dict(index.counts())}, expected {wanted}.")
        listed = {g: pages(index, g, 150) for g in held}
        everything = [name for names in listed.values() for name in names]
        if len(everything) != len(set(everything)) or set(everything) != {self.ids[i] for i in np.flatnonzero(~self.gone)}:
            raise ContractError(f"{stage}: pages of ids list {len(everything)} rows, not each of {sum(wanted.values())} once.")
        places: list[int] = np.flatnonzero(~self.gone).tolist()
        vectors, generations = index.fetch([self.ids[i] for i in places])
        listed_as = {g: set(names) for g, names in listed.items()}
        for at, vector, generation in zip(places, vectors, generations, strict=True):
            name, right, expected = self.ids[at], int(self.moved[at]), self.vector(at)
            if generation != right or name not in listed_as[right]:
                raise ContractError(f"{stage}: {name!r} stands in generation {right}; fetch or ids say another.")
            same = vector.shape == expected.shape and vector.dtype == np.float32
            if not same or np.abs(vector - expected).max() > self.stores.tolerance:
                raise ContractError(f"{stage}: fetch gives another vector of {name!r} than was stored.")


def pages(index: Index, generation: int, limit: int) -> list[Id]:
    """All ids that stand in a generation, page by page. Raises ContractError for a page that is too long."""
    found: list[Id] = []
    while True:
        page = index.ids(generation, after=found[-1] if found else None, limit=limit)
        if len(page) > limit:
            raise ContractError(f"ids(limit={limit}) gave {len(page)} ids.")
        if not page:
            return found
        found += page
        if len(found) > 1_000_000:
            raise ContractError("The pages of ids have no end.")


def _clustered(generator: np.random.Generator, n: int, dim: int) -> tuple[Floats, Floats]:
    """N rows and 20 queries about 12 centres, as texts lie about topics; on the unit sphere."""
    centres = generator.standard_normal((12, dim))
    points = centres[generator.integers(0, 12, n + 20)] + 0.6 * generator.standard_normal((n + 20, dim))
    unit = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return unit[:n], unit[n:]
