"""How busy P workers are under each schedule of decode attention: arithmetic, no clock.

Sanovar, Bharadwaj, St. Amant, Ruehle, Rajmohan 2024, "Lean Attention" (arXiv 2405.10480), whose occupancy curves follow from
it: the time of a schedule is that of its busiest worker, and a worker's time is the tiles it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from instar.errors import ShapeError
from instar.kernels.decode_attention_schedule import Schedule, deal


def makespan(schedule: Schedule, tiles: Sequence[int], workers: int, overhead: float = 0.0) -> float:
    """max_p (tiles of worker p + overhead · segments of worker p), in tiles; 0 where there is nothing to read.

    tiles: ceil(length / tile) of each output, an output being one (sequence, key head). overhead: what a segment costs beside its
    tiles (its start, and the merge where it is cut). Raises ShapeError.
    """
    if overhead < 0:
        raise ShapeError(f"overhead must be at least 0; received {overhead}.")
    worker, _, first, end = deal(schedule, np.asarray(tiles, dtype=np.int64), workers).T
    load = np.bincount(worker, weights=end - first + overhead, minlength=workers)
    return float(load.max())


def occupancy(schedule: Schedule, tiles: Sequence[int], workers: int, overhead: float = 0.0) -> float:
    """Σ tiles / (P · makespan): the share of all workers' time that reads keys.

    Of o equal outputs of n tiles it is o / (P ⌈o/P⌉) for one per output, n o / (P ⌈n o / P⌉) for stream-K.
    """
    longest = makespan(schedule, tiles, workers, overhead)
    return sum(tiles) / (workers * longest) if longest else 1.0


def curve(schedule: Schedule, tiles: Sequence[int], workers: Iterable[int] = range(1, 129), overhead: float = 0.0) -> list[float]:
    """`occupancy` by number of workers."""
    return [occupancy(schedule, tiles, count, overhead) for count in workers]
