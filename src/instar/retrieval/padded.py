"""Old and new rows in one inner-product space, so that a search during a change of encoder is one search.

A nested head (`CompatibleHead.nested`, such as BT²) makes vectors v whose first O coordinates z can be compared with old ones, g.
With v of length 1, a new row is stored as it is and an old row as (g, 0)/m, where m is the mean of ‖z‖ over a sample:
    ⟨v_q, v⟩ = cos(v_q, v)        ⟨v_q, (g, 0)/m⟩ = ⟨z_q, g⟩/m = cos(z_q, g) · ‖z_q‖/m
so that both kinds of scores are cosines, the second up to how much ‖z_q‖ differs from its mean. Only queries of the newest
generation are needed. (Zhou et al. 2023, arXiv 2211.03989, compare by raw dot products, which favour new rows; with v of length
√(1 + C²) as theirs, this is v/(1 + C²) and (g, 0)/m up to one common factor.)

The base is not rewritten: it is padded as it is read, and a graph keeps its edges, since padding changes no inner product among
old rows but by one factor. Exact, FAISS flat and HNSW can be padded. Codes of quantisers would change, cells were chosen without
the new dimensions, and usearch does not let its graph be taken over: those stay apart, which is always right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from instar.errors import GenerationError, ShapeError
from instar.interfaces import CompatibleHead, Floats, Fusion, Generation, Hits, Index
from instar.retrieval import checking, fusion
from instar.retrieval.approximate import Mask
from instar.retrieval.journalled import JournalledIndex
from instar.retrieval.layout import Layout, Nearest
from instar.retrieval.spaces import Slots, Space, widened

_PREFIX = 1e-2
"""Largest difference of a coordinate between old queries and the beginnings of the new ones."""


def mean_norm(head: CompatibleHead, x: Any) -> float:
    """m: the mean length of the part of full unit vectors that old vectors are compared with, over a sample x [N, input_dim].

    Raises ShapeError for a head that is not nested.
    """
    import torch
    import torch.nn.functional as F

    if not head.nested:
        raise ShapeError(
            f"{type(head).__name__} is not nested: its old part is no beginning of its new vectors, so padding would compare "
            "what cannot be compared. Search with queries for each generation instead."
        )
    with torch.inference_mode():
        full = F.normalize(head.full(torch.as_tensor(x)), dim=1)
        return float(full[:, : head.old_dim].norm(dim=1).mean())


def pad(index: JournalledIndex, dim: int, norm: float) -> None:
    """From now on rows of the next generation, of width `dim`, share one space with those that are there; all processes see it.

    norm: see `mean_norm`. `finish` ends it. Raises GenerationError during a change, ShapeError, StoreError.
    """
    held = index.generations()
    if len(held) != 1:
        raise GenerationError(f"An index is padded before a change begins; it holds {len(held)} generations: roll back first.")
    if not held[0].dim <= dim or not 0 < norm <= 1:
        raise ShapeError(f"Padding expects a width from {held[0].dim} on and a mean length in (0, 1], received {dim} and {norm}.")
    index.lay({"dim": dim, "norm": norm})


def unpad(index: JournalledIndex) -> None:
    """Generations lie apart again. Raises GenerationError during a change, StoreError."""
    if len(index.generations()) != 1:
        raise GenerationError("A change is under way in the padded index; finish it or roll it back first.")
    index.lay(None)


class Padded(Layout):
    """See the module. `old`: the generation of the base."""

    def __init__(self, old: Generation, dim: int, norm: float) -> None:
        self.old, self.dim, self.norm = old, dim, norm

    def key(self, generation: int) -> int:
        return -1

    def base(self, space: Space) -> Space:
        return space.padded(self.dim, 1 / self.norm)

    def allow(self, held: Sequence[Generation], new: Generation) -> None:
        if len(held) > 1:
            raise GenerationError("A padded index holds two generations at most; finish the change that is under way first.")
        if new.dim != self.dim:
            raise ShapeError(f"The index was padded to {self.dim} dimensions, the new generation has {new.dim}; pad it to that.")

    def stored(self, generation: int, vectors: Floats) -> Floats:
        return widened(vectors, self.dim, 1 / self.norm) if generation == self.old.number else vectors

    def taken(self, generation: int, held: Floats) -> Floats:
        if generation != self.old.number:
            return held
        found = held[:, : self.old.dim].astype(np.float64) * self.norm
        return found.astype(np.float32)

    def nearest(
        self, space: Space, generation: int, queries: Floats, k: int, standing: Callable[[], Mask]
    ) -> tuple[Floats, Slots]:
        if generation != self.old.number:
            return space.search(queries, k, standing())
        scores, slots = space.search(widened(queries, self.dim, 1.0), k, standing())
        return scores * np.float32(self.norm), slots

    def search(self, index: Index, queries: Mapping[int, Floats], k: int, how: Fusion, shared: Nearest) -> Hits:
        held = index.generations()
        newest = held[-1]
        if how != "cosine" or len(held) == 1 or newest.number not in queries:
            return fusion.search(index, queries, k, how)
        full = checking.asked(newest, queries[newest.number], k)
        if self.old.number in queries:
            self._prefix(checking.asked(self.old, queries[self.old.number], k), full)
        return shared(full, k)

    def _prefix(self, old: Floats, full: Floats) -> None:
        start = full[:, : self.old.dim]
        lengths = np.linalg.norm(start, axis=1, keepdims=True)
        if old.shape != start.shape or (np.abs(start - old * lengths) > _PREFIX).any():
            raise GenerationError(
                f"The queries for generation {self.old.number} are no beginnings of those for the newest one, so they are of no "
                "nested head and a padded index cannot serve them: roll back, `unpad`, and begin the change again."
            )
