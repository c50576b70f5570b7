"""What is decided before a run: how large subgroups are, which stay in memory, and in which order all are updated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from instar.errors import BudgetError, ShapeError, UnknownNameError
from instar.optim.offload.layout import Layout, checked, cut
from instar.optim.offload.memory import held, rounded
from instar.optim.offload.update import BLOCK

ScheduleName = Literal["interleaved", "pipelined", "sequential"]
SCHEDULES = ("interleaved", "pipelined", "sequential")
LARGEST, SMALLEST = 100_000_000, 1 << 12
"""Elements of a subgroup of automatic size."""
WANTED, MOST = 64, 512
"""Subgroups that the automatic size aims at, and the most that a small budget makes of it."""


@dataclass(frozen=True)
class Division:
    """A layout and which of its subgroups stay in memory (the first), which are streamed from the store (the rest)."""

    layout: Layout
    residents: int
    buffers: int
    """For staging."""
    schedule: ScheduleName

    @property
    def count(self) -> int:
        return len(self.layout.subgroups)

    @property
    def streamed(self) -> int:
        return self.count - self.residents

    @property
    def workspace(self) -> int:
        """Bytes for what an update needs between its operations."""
        return min(BLOCK, self.layout.room) * self.layout.itemsize

    @property
    def bytes(self) -> int:
        """What residents, staging buffers and workspace take of the budget."""
        return held(self.workspace) + (self.residents + self.buffers) * held(self.layout.extent)

    def order(self, k: int | Literal["auto"], *, backwards: bool = False) -> tuple[int, ...]:
        """The order of updates: interleaved, or residents first and then what is streamed."""
        first, rest = range(self.residents), range(self.residents, self.count)
        found = interleaved(first, rest, k) if self.schedule == "interleaved" else (*first, *rest)
        return found[::-1] if backwards else found


def interleaved(residents: Sequence[int], streamed: Sequence[int], k: int | Literal["auto"]) -> tuple[int, ...]:
    """A streamed subgroup after every k - 1 residents, as long as there are both; "auto" spreads them evenly.

    With streamed ones in a share of 1/k, "auto" is k. Raises ShapeError.
    """
    if k != "auto" and (not isinstance(k, int) or k < 2):
        raise ShapeError(f"k is 2 or more, or 'auto' (with k = 1 nothing is interleaved: schedule='pipelined'); received {k!r}.")
    found: list[int] = []
    left, right = list(residents), list(streamed)
    count, share = len(left) + len(right), len(right)
    for place in range(count):
        due = (place + 1) % k == 0 if k != "auto" else (place + 1) * share // count > place * share // count
        source = (right if due else left) or left or right
        found.append(source.pop(0))
    return tuple(found)


def divide(
    groups: Sequence[dict[str, Any]],
    budget: int | None,
    *,
    schedule: ScheduleName = "interleaved",
    ratio: float | None = None,
    subgroup: int | None = None,
    buffers: int = 3,
    scratch: bool = False,
) -> Division:
    """Cut the parameters and decide what stays in memory.

    Args:
        groups: as of an optimiser. budget: bytes for state and staging; None is what `ratio` needs, and without a ratio half of
            what all would take, or the least that works. schedule: see `OffloadedAdamW`.
        ratio: share of subgroups that is streamed; None is the least that the budget allows.
        subgroup: elements (S); None aims at 64 subgroups whose buffers take a quarter of the budget at most.
        buffers: for staging; the sequential schedule has one. scratch: whether one is needed though nothing is streamed.

    Raises BudgetError that says the least that works, ShapeError, UnknownNameError.
    """
    if schedule not in SCHEDULES:
        raise UnknownNameError.among("schedule", schedule, SCHEDULES)
    if buffers < 1 or (ratio is not None and not 0 <= ratio <= 1):
        raise ShapeError(f"Expected are 1 buffer or more and 0 ≤ ratio ≤ 1; received {buffers} and {ratio}.")
    wanted = 1 if schedule == "sequential" else buffers
    layout = cut(groups, subgroup or _room(groups, budget, wanted))
    none = Division(layout, len(layout.subgroups), int(scratch), schedule)
    all_streamed = Division(layout, 0, max(1, min(wanted, none.count)), schedule)
    if budget is None:
        budget = max(none.bytes // 2 if ratio is None else 2 * none.bytes, all_streamed.bytes)
    if ratio is not None:
        streamed = round(ratio * none.count)
    elif none.bytes <= budget:
        streamed = 0
    else:
        streamed = none.count - max(0, budget - all_streamed.bytes) // held(layout.extent)
    used = min(all_streamed.buffers, streamed)
    found = Division(layout, none.count - streamed, used, schedule) if streamed else none
    if found.bytes > budget:
        raise BudgetError(
            f"A budget of {budget} bytes is too small: {found.buffers} staging buffers of {layout.extent} bytes, workspace and "
            f"{found.residents} resident subgroups take {found.bytes}. The least that works with subgroups of {layout.room} "
            f"elements is {all_streamed.bytes}{', with ratio 1' if found.residents else ''}; smaller subgroups need less."
        )
    return found


def _room(groups: Sequence[dict[str, Any]], budget: int | None, buffers: int) -> int:
    """The automatic size of a subgroup."""
    params = checked(groups)
    elements, itemsize = sum(p.numel() for p in params), max((p.dtype.itemsize for p in params), default=4)
    room = min(LARGEST, max(SMALLEST, elements // WANTED))
    if budget is not None:
        room = min(room, max(SMALLEST, elements // MOST, budget // (4 * buffers * 2 * itemsize)))
    return rounded(room, 1024)
