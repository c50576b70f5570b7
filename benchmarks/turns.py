"""Calls that take turns in one process, their clocks, and what they took: the loop that most benchmarks have in common."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Call = Callable[[], object]


@dataclass
class Taken:
    """Seconds of one call, turn by turn."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def both(self) -> dict[str, float]:
        """Minimum and median by both clocks, and how many turns there were."""
        return {
            "minimum": min(self.wall),
            "median": statistics.median(self.wall),
            "cpu_minimum": min(self.cpu),
            "cpu_median": statistics.median(self.cpu),
            "rounds": len(self.wall),
        }


def turns(calls: dict[str, Call], rounds: int, *, warm: int = 1, seconds: float = math.inf, fewest: int = 3) -> dict[str, Taken]:
    """All calls once in each round, so that a machine that slows down slows them all.

    Args:
        rounds: that count. warm: rounds before them. seconds: after which no further round begins, once there are `fewest`.
    """
    for _ in range(warm):
        for call in calls.values():
            call()
    taken = {name: Taken() for name in calls}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= fewest and time.perf_counter() - start > seconds:
            break
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            taken[name].wall.append(time.perf_counter() - wall)
            taken[name].cpu.append(time.process_time() - cpu)
    return taken


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Minimum and median."""
    return {"min": min(seconds), "median": statistics.median(seconds)}
