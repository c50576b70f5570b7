"""The plan of one decoding step: which keys of which sequence and head each worker reads. The same for all layers of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.decode_attention_schedule import SCHEDULES, Array, Schedule, deal

TILE = 64
"""Keys of a tile: those of K and V, 2 · 64 · width numbers, stay in the first-level cache while they are used."""
LEAST = 16
"""Tiles that are worth a further thread, where the number of workers is not said."""

Counts = Tensor | Sequence[int] | Array


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """Segments of keys by worker. Made by `DecodePlan.of`; nothing in it is ever written to."""

    lengths: Array
    """[B], where each sequence ends."""
    starts: Array
    """[B], the first key of each that is read."""
    kv_heads: int
    schedule: Schedule
    tile: int
    segments: Array
    """[S, 4]: output (sequence · kv_heads + head), first key, end key, slot of its partial result; -1 is a whole output."""
    owners: Array
    """[P + 1]: worker p has the segments from owners[p] to owners[p + 1]."""
    cuts: Array
    """[C, 3]: outputs in several segments, the first of their slots, and how many."""
    pages: Array | None = None
    """[B, N]: the page that holds keys n · page_size … of a sequence; None for a contiguous cache."""
    page_size: int = 0
    last_page: int = -1
    """The highest page that is read."""
    empty: bool = False
    """Whether a sequence has nothing to read."""
    uniform: bool = False
    """Whether all sequences read the same columns of a contiguous cache."""
    longest: int = 0
    """The highest of `lengths`."""
    reads: int = 0
    """Keys that are read, over all sequences and key heads."""

    @property
    def workers(self) -> int:
        return len(self.owners) - 1

    @cached_property
    def addresses(self) -> tuple[int | None, int, int, int]:
        """Of pages, segments, owners and cuts, for the compiled kernel: asking numpy costs more than a short sequence."""
        pages = None if self.pages is None else self.pages.ctypes.data
        return pages, self.segments.ctypes.data, self.owners.ctypes.data, self.cuts.ctypes.data

    def __getstate__(self) -> dict[str, object]:
        """Of a copy, whose arrays lie elsewhere."""
        return {name: value for name, value in self.__dict__.items() if name != "addresses"}

    @cached_property
    def slots(self) -> int:
        """Partial results that are kept."""
        return int(self.cuts[:, 2].sum())

    @classmethod
    def of(
        cls,
        lengths: Counts,
        kv_heads: int,
        *,
        starts: Counts | None = None,
        schedule: Schedule = "stream-k",
        tile: int | None = None,
        workers: int | None = None,
        page_table: Tensor | None = None,
        page_size: int | None = None,
    ) -> DecodePlan:
        """Deal ceil((length - start) / tile) tiles of each (sequence, key head) to the workers.

        Args:
            lengths: [B], keys of each sequence. starts: [B], how many of the first ones are left out (a window); 0 when None.
            kv_heads: heads of keys and values.
            schedule: "stream-k", equal runs of all tiles; "fixed-split", every output in as many chunks; "one-per-output".
            tile: keys, TILE when None. workers: threads; None is torch's number, or fewer where there is little to read.
            page_table: integers [B, N], with page_size, the keys of a page; entries before a sequence's start
                and behind its end are not looked at.

        Raises ShapeError, also for a page table that is too short or has a negative entry among those that are read.
        O(B · kv_heads) time.
        """
        ends = _counts("lengths", lengths)
        begins = np.zeros_like(ends) if starts is None else _counts("starts", starts)
        if begins.shape != ends.shape:
            raise ShapeError(f"starts expects one number for each of {len(ends)} sequences; received {len(begins)}.")
        tile = TILE if tile is None else tile
        if kv_heads < 1 or tile < 1 or (workers is not None and workers < 1) or schedule not in SCHEDULES:
            raise ShapeError(
                f"A plan expects kv_heads, tile and workers of at least 1 and a schedule among {', '.join(SCHEDULES)}; received "
                f"{kv_heads}, {tile}, {workers} and '{schedule}'."
            )
        keys = np.maximum(ends - begins, 0)
        tiles = np.repeat(-(-keys // tile), kv_heads)
        if workers is None:
            workers = max(1, min(torch.get_num_threads(), int(tiles.sum()) * tile // (LEAST * TILE)))
        pages, last_page = _pages(page_table, page_size, begins, ends)
        segments, owners, cuts = _segments(deal(schedule, tiles, workers), workers, begins, ends, kv_heads, tile)
        return cls(
            lengths=ends,
            starts=begins,
            kv_heads=kv_heads,
            schedule=schedule,
            tile=tile,
            segments=segments,
            owners=owners,
            cuts=cuts,
            pages=pages,
            page_size=0 if pages is None or page_size is None else page_size,
            last_page=last_page,
            empty=bool((keys == 0).any()),
            uniform=pages is None and bool(len(ends)) and bool((ends == ends[0]).all() and (begins == begins[0]).all()),
            longest=int(ends.max(initial=0)),
            reads=int(keys.sum()) * kv_heads,
        )


def _counts(name: str, given: Counts) -> Array:
    if isinstance(given, Tensor) and given.is_floating_point():
        raise ShapeError(f"{name} expects integers [B]; received {given.dtype}.")
    found = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise ShapeError(f"{name} expects integers [B]; received shape {found.shape} of {found.dtype}.")
    counts = np.array(found, dtype=np.int64)  # a copy: what the caller does with his own changes no plan
    if counts.size and counts.min() < 0:
        raise ShapeError(f"{name} expects numbers of at least 0; received {int(counts.min())} (as int64).")
    return counts


def _pages(table: Tensor | None, size: int | None, begins: Array, ends: Array) -> tuple[Array | None, int]:
    """A copy of the table, and the highest page that is read; entries that are not read may be anything."""
    if (table is None) != (size is None):
        raise ShapeError("A paged cache expects both a page table and the size of a page.")
    if table is None or size is None:
        return None, -1
    if table.is_floating_point() or table.dim() != 2 or table.shape[0] != len(ends) or size < 1:
        raise ShapeError(
            f"A page table expects integers [{len(ends)}, N] and pages of at least one key; received {tuple(table.shape)} of "
            f"{table.dtype}, and {size}."
        )
    found = np.array(table.cpu().numpy(), dtype=np.int64)
    if len(ends) and (longest := int(ends.max())) > found.shape[1] * size:
        raise ShapeError(f"A page table of {found.shape[1]} pages of {size} keys is too short for {longest} keys.")
    first = np.arange(found.shape[1]) * size
    read = (first < ends[:, None]) & (first + size > begins[:, None]) & (begins < ends)[:, None]
    if (found[read] < 0).any():
        row = int(np.argwhere(read & (found < 0))[0][0])
        raise ShapeError(f"The page table of sequence {row} has a negative entry before its end at {int(ends[row])} keys.")
    return found, int(found[read].max(initial=-1))


def _segments(dealt: Array, workers: int, begins: Array, ends: Array, kv_heads: int, tile: int) -> tuple[Array, Array, Array]:
    """Tiles to keys, and a slot of scratch memory for every part of a cut output: outputs' slots lie together."""
    worker, output, first, end = dealt.T
    begin, stop = begins[output // kv_heads], ends[output // kv_heads]
    parts = np.bincount(output, minlength=len(ends) * kv_heads)
    slot = np.full(len(output), -1)
    order = np.lexsort((first, output))
    cut = order[parts[output[order]] > 1]
    slot[cut] = np.arange(len(cut))
    segments = np.stack([output, begin + first * tile, np.minimum(begin + end * tile, stop), slot], 1)
    owners = np.searchsorted(worker, np.arange(workers + 1))
    several = np.flatnonzero(parts > 1)
    counts = parts[several]
    cuts = np.stack([several, np.cumsum(counts) - counts, counts], 1)
    return (np.ascontiguousarray(part, dtype=np.int64) for part in (segments, owners, cuts))  # type: ignore[return-value]
