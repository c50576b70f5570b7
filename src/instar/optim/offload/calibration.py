"""The rates of this machine: updates, the store's reads and writes, and what they cost each other. About a second."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from instar.errors import ShapeError
from instar.optim.offload.media import opened
from instar.optim.offload.memory import PAGE, aligned
from instar.optim.offload.plan import Hardware
from instar.optim.offload.store import StoreSpec
from instar.optim.offload.update import BLOCK, adamw

_ELEMENTS = 1 << 21
_GROUP = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
_DUPLEX = 1.5
"""Reading and writing at once count as duplex where they take less than (read + write) / this."""


def calibrate(
    store: str | Path | StoreSpec | None = None, *, extent: int = 1 << 22, seconds: float = 1.0, room: int = 1 << 26
) -> Hardware:
    """Measure what `plan_offload` needs, with the threads of torch as they are set now.

    Args:
        store: of which the folder and the mode count; the file itself is not touched. extent: bytes of a transfer. seconds: in
            all, about; a slow disk takes longer. room: bytes of the scratch file.

    Returns rates; writes are counted until the disk has them. Raises StoreError, ShapeError.
    Memory: 34 MB for the updates and two extents.
    """
    if extent < PAGE or extent % PAGE or room < extent or not seconds > 0:
        raise ShapeError(
            f"calibrate expects extents in multiples of {PAGE} bytes, room for one, seconds > 0; received {extent}, {room}."
        )
    spec = store if isinstance(store, StoreSpec) else StoreSpec(store)
    medium = opened(spec.mode, spec.folder, room, spec.rate)
    buffers = [aligned(extent).fill_(n + 1) for n in range(2)]  # zeros might be kept as a hole
    places = [range(0, room - extent + 1, extent)] * 2
    share = seconds / 5

    def write(until: Callable[[int], bool]) -> int:
        for done in itertools.count():
            if until(done):
                medium.sync()
                return done
            medium.write(places[0][done % len(places[0])], buffers[0])
        raise AssertionError

    def read(until: Callable[[int], bool]) -> int:
        for done in itertools.count():
            if until(done):
                return done
            medium.read(places[1][done % len(places[1])], buffers[1])
        raise AssertionError

    try:
        write(_count(len(places[0])))  # so that there is something to read
        written, writing = _timed(write, _elapsed(share))
        was_read, reading = _timed(read, _elapsed(share))
        alone = _updates(share)
        write_rate, read_rate = written * extent / writing, was_read * extent / reading
        counts = [max(1, round(share * rate / extent)) for rate in (write_rate, read_rate)]
        ends: list[float] = []
        moving = threading.Event()

        def one(work: Callable[[Callable[[int], bool]], int], count: int) -> None:
            work(_count(count))
            ends.append(time.perf_counter())
            moving.set()

        threads = [threading.Thread(target=one, args=pair) for pair in zip((write, read), counts, strict=True)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        beside = _updates(share, moving)
        for thread in threads:
            thread.join()
        both = max(ends) - began
    finally:
        medium.close()
    apart = counts[0] * extent / write_rate + counts[1] * extent / read_rate
    return Hardware(
        alone,
        read_rate,
        write_rate,
        duplex=apart / both > _DUPLEX,
        contention=max(0.0, alone / beside - 1),
        emulated=medium.emulated,
    )


def _updates(seconds: float, end: threading.Event | None = None) -> float:
    """Parameters a second, of arrays that no second cache holds, with the look at gradients that precedes every step."""
    p, g, m, v = (torch.full((_ELEMENTS,), 1e-3) for _ in range(4))
    workspace = torch.empty(BLOCK)
    adamw(p, g, m, v, 1, _GROUP, workspace)
    began, done = time.perf_counter(), 0
    while done == 0 or (time.perf_counter() - began < seconds and not (end is not None and end.is_set())):
        torch.linalg.vector_norm(g)
        adamw(p, g, m, v, 2, _GROUP, workspace)
        done += 1
    return done * _ELEMENTS / (time.perf_counter() - began)


def _timed(work: Callable[[Callable[[int], bool]], int], until: Callable[[int], bool]) -> tuple[int, float]:
    began = time.perf_counter()
    done = work(until)
    return done, time.perf_counter() - began


def _count(count: int) -> Callable[[int], bool]:
    return lambda done: done >= count


def _elapsed(seconds: float) -> Callable[[int], bool]:
    began = time.perf_counter()
    return lambda done: done > 0 and time.perf_counter() - began > seconds
