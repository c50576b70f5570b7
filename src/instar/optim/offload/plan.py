"""What training with offloaded state will take, said before a run: seconds of a step, bytes of memory, bytes of the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from instar.optim.first_order import decayed
from instar.optim.offload.events import Tasks, Timeline
from instar.optim.offload.memory import held
from instar.optim.offload.schedule import Division, ScheduleName, divide

_STEPS = 6
"""Simulated: the last two, one in each direction, are those of a long run."""
_FORWARD = 1 / 3
"""Of the passes: the share before the first gradient."""
_INTERVALS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
"""That are tried."""


@dataclass(frozen=True)
class Hardware:
    """Rates of this machine, as `calibrate` measures them.

    Args:
        update_rate: parameters a second (U). read_rate, write_rate: bytes a second of the store, each alone.
        duplex: whether reading and writing at once take the time of the longer one, instead of the sum.
        contention: share by which updates take longer while the store is read and written.
        emulated: whether the store is.
    """

    update_rate: float
    read_rate: float
    write_rate: float
    duplex: bool = True
    contention: float = 0.0
    emulated: bool = False


@dataclass(frozen=True)
class Plan:
    """A division, the order of its updates and what is predicted of both."""

    division: Division
    hardware: Hardware
    k: int | Literal["auto"]
    alternate: bool
    prefetch: bool
    pass_seconds: float
    weights_bytes: int
    """Of the parameters, and as much again of their gradients."""
    step_seconds: float = 0.0
    """Predicted, of `step()`, without forward and backward pass."""

    @property
    def peak_bytes(self) -> int:
        """Parameters, gradients, and what the budget holds; activations and the interpreter come on top."""
        return 2 * self.weights_bytes + self.division.bytes

    @property
    def state_bytes(self) -> int:
        """What plain AdamW would hold in memory."""
        return sum(2 * s.length * s.dtype.itemsize for s in self.division.layout.subgroups)

    @property
    def scratch_bytes(self) -> int:
        """Of a store without a name."""
        return self.division.count * self.division.layout.extent

    @property
    def recoverable_bytes(self) -> int:
        """Of a store with a name: everything twice, parameters included (records excluded)."""
        layout = self.division.layout
        return 2 * self.division.count * (layout.extent + layout.weights_extent)

    @property
    def hiding_interval(self) -> int:
        """The smallest k with k c ≥ the transfers of one subgroup, where c is an update: the processor then never waits.

        In the paper's setting it is (k-1) c ≥ transfers + g, since the streamed subgroup is updated elsewhere.
        """
        return _hiding(self)

    @property
    def hiding_bytes(self) -> int:
        """The budget that this interval needs, its residents being all but one in k."""
        count, k = self.division.count, self.hiding_interval
        residents = count - count // k
        return held(self.division.workspace) + (residents + self.division.buffers) * held(self.division.layout.extent)

    def json(self) -> dict[str, Any]:
        """For programs."""
        division = self.division
        return {
            "schedule": division.schedule,
            "k": self.k,
            "parameters": division.layout.elements,
            "subgroup": division.layout.room,
            "subgroups": division.count,
            "residents": division.residents,
            "streamed": division.streamed,
            "buffers": division.buffers,
            "budget_bytes": division.bytes,
            "state_bytes": self.state_bytes,
            "weights_bytes": self.weights_bytes,
            "peak_bytes": self.peak_bytes,
            "scratch_bytes": self.scratch_bytes,
            "recoverable_bytes": self.recoverable_bytes,
            "step_seconds": self.step_seconds,
            "hiding_interval": self.hiding_interval,
            "hiding_bytes": self.hiding_bytes,
            "emulated": self.hardware.emulated,
        }


def plan_offload(
    params: nn.Module | Sequence[dict[str, Any]],
    hardware: Hardware,
    budget_bytes: int | None,
    *,
    schedule: ScheduleName = "interleaved",
    k: int | Literal["auto", "best"] = "best",
    ratio: float | None = None,
    subgroup: int | None = None,
    buffers: int = 3,
    alternate: bool = True,
    prefetch: bool = True,
    pass_seconds: float = 0.0,
    recoverable: bool = False,
) -> Plan:
    """Predict a step of `OffloadedAdamW` with these arguments; nothing is allocated, and parameters may be on the device meta.

    Args:
        params: a model or the groups of an optimiser. hardware: of `calibrate`, or as it might be. k: "best" tries some intervals
            up to 32 besides "auto" by simulation. pass_seconds: of forward and backward pass, during which the first reads and
            the last writes go on. recoverable: whether the store has a name, for which one buffer is kept even where nothing is
            streamed (`StoreSpec.recoverable`). All others: as of `OffloadedAdamW`.

    Raises BudgetError that says the least that works, ShapeError. Time: one simulation of six steps for each interval.
    """
    groups = decayed(params, 0.0) if isinstance(params, nn.Module) else params
    cut: dict[str, Any] = {"schedule": schedule, "ratio": ratio, "subgroup": subgroup, "buffers": buffers}
    division = divide(groups, budget_bytes, scratch=recoverable, **cut)
    weights = sum(s.length * s.dtype.itemsize for s in division.layout.subgroups)
    first: int | Literal["auto"] = "auto" if k == "best" else k
    plan = Plan(division, hardware, first, alternate, prefetch, pass_seconds, weights)
    tried = [plan]
    if k == "best" and schedule == "interleaved" and division.residents and division.streamed:
        tried += [replace(plan, k=n) for n in _INTERVALS if n <= division.count]
    return min((replace(one, step_seconds=step_seconds(one)) for one in tried), key=lambda one: one.step_seconds)


def step_seconds(plan: Plan) -> float:
    """Mean of a step forwards and one backwards, as they are in a long run."""
    timeline = simulate(plan)
    starts = [timeline.end(f"{t} backward") for t in range(_STEPS - 2, _STEPS)]
    ends = [timeline.end(f"{t} step") for t in range(_STEPS - 2, _STEPS)]
    return sum(ends) / 2 - sum(starts) / 2


def simulate(plan: Plan) -> Timeline:
    """Steps of a plan as discrete events on the processor, the reader and the writer (one disk where it is not duplex).

    Tasks are called "T forward", "T backward", "T read X", "T update X", "T write X" and "T step" for step T and subgroup X.
    """
    division, tasks = plan.division, Tasks()
    hardware, layout = plan.hardware, division.layout
    reader, writer = ("reader", "writer") if hardware.duplex else ("disk", "disk")
    reading, writing = layout.extent / hardware.read_rate, layout.extent / hardware.write_rate
    background = division.schedule != "sequential"
    slowed = 1 + hardware.contention * bool(background and division.streamed)
    last: int | None = None  # of what the processor did
    wrote: dict[int, int] = {}  # the last write of a subgroup
    freed: list[int | None] = [
        None
    ] * division.buffers  # the write, or nothing, that frees a buffer; the first one is freed first
    held_over: set[int] = set()
    for turn in range(_STEPS):
        forward = tasks.add(f"{turn} forward", "processor", plan.pass_seconds * _FORWARD, [last])
        last = tasks.add(f"{turn} backward", "processor", plan.pass_seconds * (1 - _FORWARD), [forward])
        order = division.order(plan.k, backwards=plan.alternate and turn % 2 == 1)
        streamed = [x for x in order if x >= division.residents]
        kept = set(streamed[-division.buffers :]) if plan.alternate and streamed else set()
        begins = forward if plan.prefetch and background else last
        reads: dict[int, int] = {}
        queue = [x for x in streamed if x not in held_over]
        ahead = len(freed) if background else 0

        def read(x: int, after: int, *, turn: int = turn, reads: dict[int, int] = reads) -> None:
            reads[x] = tasks.add(f"{turn} read {x}", reader, reading, [after, freed.pop(0), wrote.get(x)])

        for x in queue[:ahead]:
            read(x, begins)
        queue = queue[ahead:]
        for x in order:
            streams = x >= division.residents
            if streams and x not in reads and x not in held_over:
                read(x, last)
                queue.remove(x)
            seconds = layout.subgroups[x].length / hardware.update_rate * slowed
            last = tasks.add(f"{turn} update {x}", "processor", seconds, [last, reads.get(x)])
            if not streams or x in kept:
                continue
            wrote[x] = tasks.add(f"{turn} write {x}", writer, writing, [last])
            freed.append(wrote[x])
            if not background:
                last = wrote[x]
            elif queue:
                read(queue.pop(0), last)
        held_over = kept
        last = tasks.add(f"{turn} step", "processor", 0.0, [last])
    return tasks.run()


def _hiding(plan: Plan) -> int:
    hardware, layout = plan.hardware, plan.division.layout
    update = layout.room / hardware.update_rate * (1 + hardware.contention)
    reading, writing = layout.extent / hardware.read_rate, layout.extent / hardware.write_rate
    transfers = max(reading, writing) if hardware.duplex else reading + writing
    return max(2, math.ceil(transfers / update))
