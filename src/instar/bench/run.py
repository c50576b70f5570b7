"""One run in a process of its own: build, train, evaluate, and return the record."""

from __future__ import annotations

import datetime
import itertools
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from instar import catalogue
from instar.bench import costs, environment, record
from instar.bench.plan import Task, build_problem
from instar.bench.record import Record
from instar.bench.seeds import initialising
from instar.errors import DataError, DivergedError
from instar.interfaces import Data, Items, Problem

Progress = Callable[[int, float], None]
_CURVE_POINTS = 200
_WARM = 2
"""Steps that a calibration leaves out: allocations, lazy initialisation."""


def lift(problem: Problem, slug: str, arguments: dict[str, Any], data: Data, seed: int) -> Any:
    """The subject under test: the method, made into what the problem trains."""
    card = catalogue.method(slug)
    cls = catalogue.load(card)
    name = next((name for interface, name in problem.accepts.items() if issubclass(cls, interface)), None)
    if name is None:
        wanted = ", ".join(interface.__name__ for interface in problem.accepts)
        raise DataError(f"{slug} is no {wanted}: {type(problem).__name__} cannot take it.")

    with initialising(seed):
        return getattr(problem, name)(catalogue.Build(card, cls, arguments), data, seed)


def execute(task: Task, threads: int, progress: Progress) -> Record:
    """Run a task and return its record; errors propagate (the parent turns them into records)."""
    torch.set_num_threads(threads)
    started, load_before, clock = now(), environment.load(), time.perf_counter()
    if task.added:
        catalogue.add(task.added)
    problem, data = _problem(task)
    method, seed = task.spec["method"], task.spec["seed"]
    subject = lift(problem, method["slug"], method["arguments"], data, seed)
    figures = costs.measure(problem, subject, data, seed)
    curve: list[tuple[int, float, float]] = []
    every, made = max(1, task.spec["steps"] // _CURVE_POINTS), 0

    def monitor(step: int, loss: float) -> None:
        nonlocal made
        made = max(made + 1, step)  # a stage may count anew, and a run that goes on begins in the middle
        if step % every == 0 or step == task.spec["steps"]:
            curve.append((step, round(loss, 5), round(time.perf_counter() - clock, 3)))
        progress(step, loss)

    problem.fit(subject, data.train, steps=task.spec["steps"], seed=seed, monitor=monitor, checkpoint=Path(task.checkpoint))
    metrics = problem.evaluate(subject, data.valid if task.split == "valid" else data.test)
    result = {
        **blank(task),
        "status": "ok",
        "data": {"sha256": data.sha256, **data.facts},
        "curve": curve,
        "train_tokens": (made or task.spec["steps"]) * problem.tokens_per_step,
        "metrics": {name: _metric(name, items) for name, items in metrics.items()},
        "costs": figures,
        "resources": {
            "wall_seconds": round(time.perf_counter() - clock, 3),
            "cpu_seconds": round(time.process_time(), 3),
            "peak_rss_bytes": peak_rss(),
            "threads": threads,
            "load_before": load_before,
            "load_after": environment.load(),
        },
        "started": started,
        "finished": now(),
    }
    shutil.rmtree(task.checkpoint, ignore_errors=True)
    return result


def blank(task: Task) -> Record:
    """What every record of a task says, whatever became of it."""
    return {
        "schema": record.SCHEMA,
        "id": task.id,
        "kind": task.kind,
        "status": "error",
        "reason": None,
        "spec": task.spec,
        "address": task.address,
        "setting": task.setting,
        "baseline": task.baseline,
        "split": task.split,
        "budget": task.budget,
        "card": catalogue.method(task.spec["method"]["slug"]).version if not task.added else None,
        "sources": task.sources,
        "command": task.command,
        "environment": environment.describe(),
        "finished": now(),
    }


def calibrate(task: Task, threads: int, progress: Progress) -> dict[str, float]:
    """Seconds of one training step (the mean after a warm-up, of what is not done at every step too) and the memory."""
    torch.set_num_threads(threads)
    if task.added:
        catalogue.add(task.added)
    problem, data = _problem(task)
    method = task.spec["method"]
    subject = lift(problem, method["slug"], method["arguments"], data, 0)
    ticks = [time.perf_counter()]

    def monitor(step: int, loss: float) -> bool:
        ticks.append(time.perf_counter())
        progress(step, loss)
        return ticks[-1] - ticks[0] > 20 and len(ticks) > 4  # a slow method needs no dozen

    try:
        problem.fit(subject, data.train, steps=_WARM + problem.timed_steps, seed=0, monitor=monitor)
    except DivergedError:  # its runs will say so; how long a step takes is known by then
        if len(ticks) <= _WARM + 1:
            raise
    each = [b - a for a, b in itertools.pairwise(ticks)]
    return {"step_seconds": statistics.fmean(each[_WARM:] or each), "peak_rss_bytes": float(peak_rss())}


def peak_rss() -> int:
    """The largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _problem(task: Task) -> tuple[Problem, Data]:
    asked = task.spec["problem"]
    problem = build_problem(asked["slug"], {**asked["settings"], **task.sources})
    data = problem.load(task.spec["seed"])
    if data.sha256 != task.spec["data"]:
        raise DataError(f"The data changed since the plan was made: {data.sha256[:12]} instead of {task.spec['data'][:12]}.")
    return problem, data


def _metric(name: str, items: Items) -> dict[str, Any]:
    value = items.value
    if not value == value or abs(value) == float("inf"):
        raise DivergedError(f"The metric {name} is {value}.")
    return {"value": value, "totals": [float(f"{t:.7g}") for t in items.totals], "weights": list(items.weights)}


def now() -> str:
    """The time, for records."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
