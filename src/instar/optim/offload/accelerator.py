"""The paper's own setting, as a model: an accelerator, host memory and the link between them. Nothing of it runs here.

Subgroup x of N is updated on the accelerator where (x + 1) mod k = 0, its state being prefetched while the host updates the k - 1
others; with k = 0 the host updates all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from instar.errors import PlanError
from instar.optim.offload.events import Tasks, Timeline

_STATE = 4
"""Bytes a parameter of each of master weight, momentum and variance."""
_HALF = 2
"""Bytes of a 16-bit parameter or gradient."""
_PARTS = 3


@dataclass(frozen=True)
class Node:
    """Rates of one rank.

    Args:
        host_rate: parameters a second that the host updates (U_c). device_rate: the accelerator (U_g). to_device, to_host: bytes
        a second of the link (H, D), at once where `duplex`. convert_rate: parameters a second to 16 bits (C). contention: share
        by which host updates take longer while the link moves state. gradient_rate: bytes a second of gradients that are copied
        to the host one after the other during the backward pass.
    """

    host_rate: float
    device_rate: float = math.inf
    to_device: float = math.inf
    to_host: float = math.inf
    convert_rate: float = math.inf
    duplex: bool = True
    contention: float = 0.0
    gradient_rate: float = math.inf

    def host(self, size: int) -> float:
        """Seconds of a host update of `size` parameters while state moves."""
        return size / self.host_rate * (1 + self.contention)

    def transfers(self, size: int) -> float:
        """Seconds of the state of a subgroup in and out."""
        ways = [_PARTS * _STATE * size / rate for rate in (self.to_device, self.to_host)]
        return max(ways) if self.duplex else sum(ways)


def baseline_step(node: Node, count: int, size: int) -> float:
    """N (S/U_c + S/C + 2S/H): all on the host, with conversion and upload of each subgroup waited for."""
    return count * size * (1 / node.host_rate + 1 / node.convert_rate + _HALF / node.to_device)


def ideal_step(node: Node, count: int, size: int, k: int) -> float:
    """ceil(N/k) · max((k-1) c', transfers + g), and a last flush that nothing hides. Raises PlanError."""
    _interval(k)
    device = node.transfers(size) + size / node.device_rate
    flush = _PARTS * _STATE * size / node.to_host
    return math.ceil(count / k) * max((k - 1) * node.host(size), device) + flush


def best_interval(node: Node, count: int, size: int) -> int:
    """k* = 1 + ceil((transfers + g) / c'), between 2 and N: the smallest whose host updates hide all transfers."""
    device = node.transfers(size) + size / node.device_rate
    hidden = math.inf if math.isinf(device) else 1 + math.ceil(device / node.host(size))
    return int(min(max(2, hidden), max(2, count)))


@dataclass(frozen=True)
class LinearMix:
    """step(k) = a (k-1)/k + b/k: a, the whole model on the host; b, the whole model through the accelerator."""

    a: float
    b: float

    @classmethod
    def fit(cls, probes: Mapping[int, float]) -> LinearMix:
        """From the seconds of two intervals or more, by least squares. Raises PlanError."""
        if len(probes) < 2:
            raise PlanError(f"Two intervals with their seconds are needed; received {dict(probes)}.")
        for k in probes:
            _interval(k)
        rows = np.array([[(k - 1) / k, 1 / k] for k in probes])
        a, b = np.linalg.lstsq(rows, np.array(list(probes.values())), rcond=None)[0]
        return cls(float(a), float(b))

    def predict(self, k: int) -> float:
        """Seconds of a step. Raises PlanError."""
        _interval(k)
        return self.a * (k - 1) / k + self.b / k

    def best(self, intervals: tuple[int, ...]) -> int:
        """The interval of the shortest step."""
        return min(intervals, key=self.predict)


@dataclass(frozen=True)
class Iteration:
    """A simulated iteration: seconds of its phases, bytes on the accelerator at its peak, and the timeline of the update."""

    forward: float
    backward: float
    update: float
    other: float
    peak_device_bytes: float
    timeline: Timeline

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.update + self.other


def simulate_iteration(
    node: Node,
    *,
    parameters: float,
    size: int = 100_000_000,
    k: int = 0,
    ratio: float = 1.0,
    async_gradients: bool = False,
    forward: float = 0.0,
    backward: float = 0.0,
    other: float = 0.0,
) -> Iteration:
    """One iteration of one rank.

    Args:
        parameters: of this rank. size: S. k: interval, 0 for none. ratio: share whose state is not on the accelerator for good.
        async_gradients: whether gradients are copied to the host while the backward pass goes on, instead of in between.
        forward, backward, other: seconds without any offloading.

    Raises PlanError.
    """
    if k != 0:
        _interval(k)
    offloaded = parameters * ratio
    count = max(1, round(offloaded / size)) if offloaded else 0
    size = round(offloaded / count) if count else size
    copied = 0.0 if async_gradients else _HALF * offloaded / node.gradient_rate
    timeline = _update(node, count, size, k).run()
    resident = parameters - offloaded
    update = timeline.makespan + resident / node.device_rate
    waiting = _HALF * size * (count // k) if k else 0
    moving = _PARTS * _STATE * size if k and count >= k else 0
    held = _HALF * parameters + _PARTS * _STATE * resident + waiting + moving
    return Iteration(forward, backward + copied, update, other, held, timeline)


def _update(node: Node, count: int, size: int, k: int) -> Tasks:
    """The update phase. One device buffer: of each of its three tensors the flush precedes the next prefetch."""
    tasks = Tasks()
    host, device, converter = "host", "accelerator", "converter"
    link_in, link_out = ("to device", "to host") if node.duplex else ("link", "link")
    part_in, part_out = _STATE * size / node.to_device, _STATE * size / node.to_host
    last: int | None = None
    upload: int | None = None
    flushing: int | None = None  # the accelerator's update whose state is still there
    arriving: list[int] = []
    for x in range(count):
        if k == 0:
            done = tasks.add(f"host {x}", host, size / node.host_rate, [last, upload])
            ready = tasks.add(f"convert {x}", converter, size / node.convert_rate, [done])
            upload = tasks.add(f"upload {x}", link_in, _HALF * size / node.to_device, [ready])
            last = done
        elif (x + 1) % k == 0:
            flushing = tasks.add(f"device {x}", device, size / node.device_rate, arriving)
            arriving = []
        else:
            if x % k == 0:
                due = x + k - 1 < count
                for part in range(_PARTS):
                    out = None if flushing is None else tasks.add(f"flush {x} {part}", link_out, part_out, [flushing, last])
                    if due:
                        arriving.append(tasks.add(f"prefetch {x} {part}", link_in, part_in, [out, last]))
                flushing = None
            last = tasks.add(f"host {x}", host, node.host(size), [last])
            ready = tasks.add(f"convert {x}", converter, size / node.convert_rate, [last])
            tasks.add(f"upload {x}", link_in, _HALF * size / node.to_device, [ready])
    if flushing is not None:
        for part in range(_PARTS):
            tasks.add(f"flush end {part}", link_out, part_out, [flushing])
    return tasks


def _interval(k: int) -> None:
    if not isinstance(k, int) or k < 2:
        raise PlanError(
            f"An interval is a whole number from 2 on (0 turns the scheme off where that is possible); received {k!r}."
        )
