"""The exclusive timing pass: short fixed workloads, one thread, methods interleaved, warm-up apart.

Ratios of one such pass are the figure to quote; minimum and median are of rounds in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from instar import catalogue
from instar.bench import environment
from instar.bench.plan import Entry
from instar.bench.run import lift
from instar.interfaces import Data, Problem

_SAMPLE_SECONDS = 0.02  # a sample repeats a short workload until the clock's grain and interrupts are small beside it
_ROUNDS = 7
_WORKLOAD_SECONDS = 12.0  # for all methods together; a workload that would take longer gets fewer rounds, at least 3


def measure(
    problem: Problem,
    entries: Sequence[Entry],
    data: Data,
    *,
    threads: int,
    metrics: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Seconds per unit: {address: {metric: {minimum, median, rounds, cpu_over_wall, calls}}}. Rounds pair over methods."""
    torch.set_num_threads(threads)
    for entry in entries:
        if entry.added:
            catalogue.add(entry.added)
    subjects = {e.address: lift(problem, e.slug, e.arguments, data, 0) for e in entries}
    result: dict[str, dict[str, dict[str, Any]]] = {address: {} for address in subjects}
    for workload in problem.workloads():
        if metrics is not None and workload.metric not in metrics:
            continue
        progress(workload.metric)
        calls = {address: workload.prepare(subject) for address, subject in subjects.items()}
        repeats = {address: _warm(call) for address, call in calls.items()}
        wall: dict[str, list[float]] = {address: [] for address in calls}
        cpu: dict[str, list[float]] = {address: [] for address in calls}
        start = time.perf_counter()
        for number in range(_ROUNDS):
            if number >= 3 and time.perf_counter() - start > _WORKLOAD_SECONDS:
                break
            order = list(calls)
            for address in order[number % len(order) :] + order[: number % len(order)]:
                a, b = _sample(calls[address], repeats[address])
                wall[address].append(a / workload.units)
                cpu[address].append(b / workload.units)
        for address in calls:
            result[address][workload.metric] = {
                "minimum": min(wall[address]),
                "median": statistics.median(wall[address]),
                "rounds": wall[address],
                "cpu_over_wall": sum(cpu[address]) / sum(wall[address]),
                "calls": repeats[address],
                "load": environment.load(),
            }
    return result


def _warm(call: Callable[[], object]) -> int:
    """One call apart (allocations, lazy initialisation), then the repeats that make a sample long enough."""
    call()
    seconds, _ = _sample(call, 1)
    return max(1, min(1000, round(_SAMPLE_SECONDS / max(seconds, 1e-7))))


def _sample(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats
