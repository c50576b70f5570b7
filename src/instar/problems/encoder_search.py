"""How well queries find what they should before, during and after a change of encoder: exact ranks, item by item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instar.bench.seeds import stream
from instar.compat.mapping import Map
from instar.errors import DataError
from instar.interfaces import CompatibleHead, Items
from instar.problems.encoder_world import Places, World
from instar.upgrade import ranks as ranking
from instar.upgrade import truth
from instar.upgrade.ranks import Asked, Gallery, Scores

K = 10
_BLOCKS = 150
"""About so many items a part is cut into where there are no classes."""
_ROWS = 4096


@dataclass(frozen=True)
class Search:
    """Queries, and the documents of a part in the order in which they are re-encoded."""

    world: World
    asked: Asked
    gallery: Gallery
    block: Places
    """[Q] the item of the bootstrap that a query belongs to, 0 … B − 1."""


def search_in(world: World, part: Places, most: int, seed: int) -> Search:
    """The documents of a part, and at most so many queries (the same for every seed). Raises DataError where there are too few.

    Questions about neighbouring documents, and sentences of a class, are alike: together they are one item of the bootstrap.
    """
    collection = world.collection
    queries = part if collection.relevant is None else world.about(part)
    queries = queries[np.sort(torch.randperm(len(queries), generator=stream(0, "queries")).numpy()[:most])]
    asked = truth.asked(collection, world.new, part, queries, K)
    if len(asked.queries) < 2:
        raise DataError(f"{collection.name}: {len(asked.queries)} queries find something among {len(part)} documents.")
    if collection.labels is not None and asked.itself:
        names = [collection.labels[q] for q in asked.queries]
    else:
        first = asked.queries if asked.itself else np.array([r[0] for r in asked.relevant])
        names = list(np.searchsorted(part, first) // max(1, len(part) // _BLOCKS))
    block = np.unique(names, return_inverse=True)[1]
    order = part[torch.randperm(len(part), generator=stream(seed, "backfill")).numpy()]
    return Search(world, asked, Gallery.of(order, 2), block)


def measure(head: CompatibleHead, search: Search) -> dict[str, Items]:
    """Top-1, recall at 10 and average precision by query and by what is compared with what.

    old_old: both sides by the old encoder. new_old: the head's queries, no row re-encoded. half: half of the rows re-encoded, by
    cosine as it is. new_new: all rows. A block of queries is an item.
    """
    world, rows = search.world, torch.from_numpy(search.gallery.order)
    read = world.new.documents if world.inputs is None or isinstance(head, Map) else world.inputs
    x, before = (
        torch.from_numpy(documents if side.queries is None else side.queries)
        for documents, side in ((read, world.new), (world.old.documents, world.old))
    )
    places = torch.from_numpy(search.asked.queries)
    full, compatible = (_spread(_projected(head, x[places], g), places, len(x)) for g in (head.newest, head.newest - 1))
    old_rows = torch.from_numpy(world.old.documents)[rows].T
    new_rows = _projected(head, torch.from_numpy(read)[rows], head.newest).T
    now, kept = ranking.ranks(
        search.asked,
        search.gallery,
        [(_scores(compatible, old_rows), "scores"), (_scores(before, old_rows), "scores")],
        _scores(full, new_rows),
    )
    stages = {"old_old": (kept, 0), "new_old": (now, 0), "half": (now, 1), "new_new": (now, 2)}
    found: dict[str, Items] = {}
    for name, (ranks, stage) in stages.items():
        marks: Mapping[str, NDArray[np.float64]] = {
            "top1": np.array([float(r[:, stage].min() <= 1) for r in ranks]),
            "recall10": ranking.recall(ranks, K)[:, stage],
            "map": ranking.average_precision(ranks)[:, stage],
        }
        found |= {f"{metric}@{name}": _items(values, search.block) for metric, values in marks.items()}
    return found


def _items(values: NDArray[np.float64], block: Places) -> Items:
    return Items(np.bincount(block, weights=values).tolist(), np.bincount(block).astype(float).tolist())


def _projected(head: CompatibleHead, x: Tensor, generation: int) -> Tensor:
    return torch.cat([head.project(part, generation) for part in x.split(_ROWS)])


def _spread(vectors: Tensor, places: Tensor, rows: int) -> Tensor:
    """The vectors of some rows among all rows, which are asked for by their places."""
    found = vectors.new_zeros(rows, vectors.shape[1])
    found[places] = vectors
    return found


def _scores(queries: Tensor, rows: Tensor) -> Scores:
    def scores(chosen: Places) -> Tensor:
        return queries[torch.from_numpy(chosen)] @ rows

    return scores
