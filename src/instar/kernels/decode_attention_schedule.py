"""How the tiles of many outputs are dealt to workers: pure functions of counts.

Sanovar, Bharadwaj, St. Amant, Ruehle, Rajmohan 2024, "Lean Attention" (arXiv 2405.10480); the fixed split is that of
FlashDecoding (Dao, Haziza, Massa, Sizov 2023).
"""

from __future__ import annotations

import heapq
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from instar.errors import ShapeError

Array = npt.NDArray[np.int64]
Schedule = Literal["stream-k", "fixed-split", "one-per-output"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def deal(schedule: Schedule, tiles: Array, workers: int) -> Array:
    """Rows (worker, output, first tile, end tile), by worker and then by output.

    tiles: n_o, how many tiles each output has; outputs without tiles get no row. Every tile is in one row. Raises ShapeError.
    """
    if schedule not in SCHEDULES:
        raise ShapeError(f"schedule must be one of {', '.join(SCHEDULES)}; received '{schedule}'.")
    tiles = np.asarray(tiles, dtype=np.int64)
    if tiles.ndim != 1 or (tiles < 0).any() or workers < 1:
        raise ShapeError(f"A schedule expects a list of counts of at least 0, and a worker; received {tiles} and {workers}.")
    if schedule == "stream-k":
        return stream_k(tiles, workers)
    return in_turn(split(tiles, 1 if schedule == "one-per-output" else splits(tiles, workers)), workers)


def stream_k(tiles: Array, workers: int) -> Array:
    """Equal runs of the list of all tiles: worker p gets Total div P + (p < Total mod P) of them.

    At most P - 1 outputs are cut, so that there are at most (outputs + P - 1) rows. O((outputs + P) log) time.
    """
    edges = np.concatenate([[0], np.cumsum(tiles)])
    base, rest = divmod(int(edges[-1]), workers)
    places = np.arange(workers + 1)
    borders = places * base + np.minimum(places, rest)
    starts = np.unique(np.concatenate([edges, borders]))
    starts, ends = starts[:-1], starts[1:]
    output = np.searchsorted(edges, starts, side="right") - 1
    worker = np.searchsorted(borders, starts, side="right") - 1
    return np.stack([worker, output, starts - edges[output], ends - edges[output]], 1)


def splits(tiles: Array, workers: int) -> int:
    """Into how many chunks the fixed split cuts every output: the fewest that keep workers 85 % as busy as the best number does.

    With s chunks, o outputs make s · o / P waves, the last of them not full. No output is cut into more chunks than it has tiles.
    """
    tiles = np.asarray(tiles, dtype=np.int64)
    outputs, most = int((tiles > 0).sum()), int(tiles.max(initial=0))
    if outputs == 0 or most == 0:
        return 1
    tried = range(1, min(most, workers) + 1)
    waves = [s * outputs / workers for s in tried]
    busy = [w / np.ceil(w) for w in waves]
    return next(s for s, b in zip(tried, busy, strict=True) if b >= 0.85 * max(busy))


def split(tiles: Array, chunks: int) -> Array:
    """Rows (output, first tile, end tile): every output in so many chunks as equal as can be, without the empty ones."""
    places = np.arange(chunks + 1)
    borders = tiles[:, None] // chunks * places + np.minimum(places, tiles[:, None] % chunks)
    output = np.repeat(np.arange(len(tiles)), chunks)
    rows = np.stack([output, borders[:, :-1].reshape(-1), borders[:, 1:].reshape(-1)], 1)
    return rows[rows[:, 2] > rows[:, 1]]


def in_turn(jobs: Array, workers: int) -> Array:
    """Jobs (output, first tile, end tile) as a GPU hands out its blocks: in order, each to the worker that is free first."""
    if workers == 1 or len(jobs) == 0:
        return np.concatenate([np.zeros((len(jobs), 1), np.int64), jobs], 1)
    free = [(0, worker) for worker in range(workers)]
    taken = np.empty(len(jobs), np.int64)
    for number, size in enumerate((jobs[:, 2] - jobs[:, 1]).tolist()):
        time, worker = free[0]
        taken[number] = worker
        heapq.heapreplace(free, (time + size, worker))
    order = np.argsort(taken, kind="stable")
    return np.concatenate([taken[order, None], jobs[order]], 1)
