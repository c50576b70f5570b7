"""A discrete-event simulation of tasks on resources: what a schedule takes before it is run."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from instar.errors import PlanError


@dataclass(frozen=True)
class Span:
    """When a task had its resource."""

    name: str
    resource: str
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """All spans, in the order of tasks."""

    spans: tuple[Span, ...]

    @property
    def makespan(self) -> float:
        """Seconds until the last task is done."""
        return max((span.end for span in self.spans), default=0.0)

    def busy(self) -> dict[str, float]:
        """Seconds in which each resource worked."""
        found: dict[str, float] = {}
        for span in self.spans:
            found[span.resource] = found.get(span.resource, 0.0) + span.end - span.start
        return found

    def end(self, name: str) -> float:
        """When the last task of this name was done. Raises PlanError where there is none."""
        ends = [span.end for span in self.spans if span.name == name]
        if not ends:
            raise PlanError(f"No task of this timeline is called '{name}'.")
        return max(ends)


@dataclass
class Tasks:
    """Work to be simulated, in the order of its priority.

    A resource does one task at a time. Among the tasks whose predecessors are done it takes the one that was added first.
    """

    _tasks: list[tuple[str, str, float, tuple[int, ...]]] = field(default_factory=list)

    def add(self, name: str, resource: str, seconds: float, after: Sequence[int | None] = ()) -> int:
        """A task and what must be done before it (None is nothing); its number, for `after`. Raises PlanError."""
        before = tuple(number for number in after if number is not None)
        if not seconds >= 0 or any(not 0 <= number < len(self._tasks) for number in before):
            raise PlanError(f"Task {name} takes {seconds} seconds after {before}: neither below 0 nor after what comes later.")
        self._tasks.append((name, resource, seconds, before))
        return len(self._tasks) - 1

    def run(self) -> Timeline:
        """When each task begins and ends. Deterministic. O(n log n) for n tasks and predecessors."""
        waiting = [len(set(before)) for *_, before in self._tasks]
        followers: list[list[int]] = [[] for _ in self._tasks]
        for number, (*_, before) in enumerate(self._tasks):
            for other in set(before):
                followers[other].append(number)
        ready: dict[str, list[int]] = {}
        free: dict[str, bool] = {}
        for number, (_, resource, _, _) in enumerate(self._tasks):
            free[resource] = True
            if not waiting[number]:
                heapq.heappush(ready.setdefault(resource, []), number)
        running: list[tuple[float, int]] = []
        spans: list[Span | None] = [None] * len(self._tasks)
        clock = 0.0
        while True:
            for resource, queue in ready.items():
                if free[resource] and queue:
                    number = heapq.heappop(queue)
                    name, _, seconds, _ = self._tasks[number]
                    spans[number] = Span(name, resource, clock, clock + seconds)
                    heapq.heappush(running, (clock + seconds, number))
                    free[resource] = False
            if not running:
                return Timeline(tuple(span for span in spans if span is not None))
            clock, done = heapq.heappop(running)
            finished = [done]
            while running and running[0][0] == clock:
                finished.append(heapq.heappop(running)[1])
            for number in finished:
                free[self._tasks[number][1]] = True
                for follower in followers[number]:
                    waiting[follower] -= 1
                    if not waiting[follower]:
                        heapq.heappush(ready.setdefault(self._tasks[follower][1], []), follower)
