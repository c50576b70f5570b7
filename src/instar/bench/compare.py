"""`compare`: methods against a baseline on one problem, resumable, each run a record.

Order of work: plan (calibrated once, alone) → tuning trials → final runs, interleaved over methods by seed → an exclusive timing
pass. Call it again with the same folder and only what is missing runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from instar import catalogue, files
from instar.bench import environment, record, run, search, timing
from instar.bench import plan as planning
from instar.bench.executor import Executor, Job, LocalExecutor, Outcome
from instar.bench.plan import Entry, Plan, Request, Task
from instar.bench.record import Record, Store
from instar.bench.search import Trial
from instar.errors import PlanError

_CALIBRATIONS = 2  # processes a method, interleaved; the minimum counts


class Listener(Protocol):
    """Told what happens, for a progress line: amounts are in seconds of expected work."""

    def plan(self, plan: Plan, missing: int, total: int) -> None: ...

    def begin(self, stage: str, seconds: float) -> None: ...

    def progress(self, name: str, seconds: float, text: str) -> None: ...

    def note(self, text: str) -> None: ...


class Silence:
    """A listener that says nothing."""

    def plan(self, plan: Plan, missing: int, total: int) -> None:
        pass

    def begin(self, stage: str, seconds: float) -> None:
        pass

    def progress(self, name: str, seconds: float, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@dataclass
class Comparison:
    """What a call of `compare` did: the plan, how many runs it made, and how many of them, or of timing passes, failed."""

    plan: Plan
    root: Path
    ran: int = 0
    failed: int = 0
    warnings: list[str] = field(default_factory=list)

    def records(self) -> list[Record]:
        """Every record of the folder."""
        return list(Store(self.root).all())


def compare(
    request: Request,
    out: Path,
    *,
    jobs: int | None = None,
    train: bool = True,
    timed: bool = True,
    metrics: Iterable[str] | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    listener: Listener | None = None,
    executor: Executor | None = None,
    kept: Callable[[Record], None] | None = None,
) -> Comparison:
    """Run what is missing of a comparison.

    request: problem, methods, seeds, budget, trials (see `instar.bench.plan.Request`).
    out: folder of the plan and the records.
    jobs: runs at a time (default: one a core), each with its share of the threads. executor: where they run instead.
    train: whether to train and evaluate; timed: whether to make the timing pass; metrics: only these workloads.
    dry_run: plan and calibrate, write nothing. retry_failed: forget records of failures.
    kept: called with each record that is made, after it is written (`instar.sinks` sends them to trackers).
    Guard a script's entry with `if __name__ == "__main__"`: runs are processes.

    Raises PlanError, DataError, BudgetError, UnknownNameError before anything is spent. A failing run is a record, not an error.
    """
    listener = listener or Silence()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = jobs or cores
    if jobs < 1:
        raise PlanError(f"--jobs expects at least 1, received {jobs}.")
    executor = executor or LocalExecutor(jobs)
    engine = _Engine(Store(out), executor.threads, executor, listener, kept)
    path = out / "plan.json"
    while True:
        existing = Plan.load(path) if path.exists() else None
        plan, problem, data = planning.prepare(request, existing)
        if not dry_run:
            files.folder(out)
        if train:
            engine.calibrate(plan)
            plan.steps = planning.steps(plan, problem)
        if (Plan.load(path) if path.exists() else None) == existing:
            break  # else another process has begun here meanwhile, and its plan stands
    again = [old["id"] for old in engine.store.all() if old["status"] != "ok"] if retry_failed else []
    if not dry_run:
        for name in again:
            engine.store.path(name).unlink()
    result = Comparison(plan, out, warnings=planning.warnings(plan))
    known = [trial for batch in search.rounds(plan, out, engine.store) for trial in batch] if train else []
    trials = len(plan.entries) * plan.trials if train and plan.trials > 1 else 0  # TPE knows some of them only later
    searched = len(known) == trials and not engine.missing([trial.task for trial in known], again)
    final = list(plan.tasks(out, search.best(plan, known, engine.store) if searched else None)) if train else []
    missing = len(engine.missing([*(trial.task for trial in known), *final], again)) + trials - len(known)
    listener.plan(plan, missing, trials + len(final))
    for text in result.warnings:
        listener.note(text)
    if dry_run:
        return result
    plan.save(path)
    if floors := problem.floors(data):
        engine.store.put_floors(data.sha256, floors)
    if trials:
        tried: list[Trial] = []
        for batch in search.rounds(plan, out, engine.store):
            engine.execute([trial.task for trial in batch], "tuning", result)
            tried += batch
        final = list(plan.tasks(out, search.best(plan, tried, engine.store)))
    engine.execute(final, "training", result)
    if timed:
        engine.time(plan, metrics, result)
    return result


@dataclass
class _Engine:
    store: Store
    threads: int
    executor: Executor
    listener: Listener
    kept: Callable[[Record], None] | None = None

    def calibrate(self, plan: Plan) -> None:
        """Step time of every method that the plan does not know yet, alone on the machine."""
        missing = [entry for entry in plan.entries if entry.address not in plan.calibration]
        plan.steps = {**plan.steps, **{entry.address: 1 for entry in missing}}
        plan.calibration |= {entry.address: {"step_seconds": 0.0} for entry in missing}
        tasks = {task.address: task for task in plan.tasks(self.store.root) if task.address in {e.address for e in missing}}
        self.listener.begin("calibrating", float(len(tasks) * _CALIBRATIONS))
        found: dict[str, list[dict[str, float]]] = {address: [] for address in tasks}

        def done(outcome: Outcome) -> None:
            if outcome.status != "ok":
                raise PlanError(f"{outcome.name} cannot be run: {outcome.reason}\n{outcome.detail or ''}".rstrip())
            found[outcome.name].append(outcome.value)
            self.listener.progress(f"{outcome.name}/{len(found[outcome.name])}", 1.0, outcome.name)

        for _ in range(_CALIBRATIONS if tasks else 0):
            work = [Job(address, run.calibrate, (task, self.threads), 600.0, alone=True) for address, task in tasks.items()]
            self.executor.run(work, done, lambda *_: None)
        for address, values in found.items():
            plan.calibration[address] = {key: min(v[key] for v in values) for key in values[0]}
            del plan.steps[address]

    def missing(self, tasks: Iterable[Task], again: Collection[str] = ()) -> dict[str, Task]:
        """Tasks without a record, and those whose record later runs of another setting have replaced: this one counts now.

        again: records that are to be made anew. Of equal tasks, such as trials that chose the default, the first.
        """
        kept = {one["id"] for one in record.current(self.store.all())}.difference(again)
        found: dict[str, Task] = {}
        for task in tasks:
            if task.id not in kept:
                found.setdefault(task.id, task)
        return found

    def execute(self, tasks: list[Task], stage: str, result: Comparison) -> None:
        """Run the tasks that are missing."""
        missing = self.missing(tasks)
        self.listener.begin(stage, sum(t.spec["steps"] * t.step_seconds for t in missing.values()))

        def done(outcome: Outcome) -> None:
            task = missing[outcome.name]
            ok = outcome.status == "ok"
            if not ok and self.store.has(task.id):
                return  # another process made this run meanwhile, and its checkpoint went with that
            value = outcome.value if ok else {**run.blank(task), "status": outcome.status, "reason": outcome.reason}
            if outcome.detail:
                value["detail"] = outcome.detail
            self._keep(value)
            result.ran += 1
            result.failed += not ok
            self.listener.progress(task.id, task.spec["steps"] * task.step_seconds, f"{task.address} seed {task.spec['seed']}")
            if not ok:
                self.listener.note(f"{task.address} seed {task.spec['seed']}: {outcome.status}: {outcome.reason}")

        def progress(name: str, step: int, loss: float) -> None:
            task = missing[name]
            text = f"{task.address} seed {task.spec['seed']} step {step}/{task.spec['steps']} loss {loss:.3f}"
            self.listener.progress(name, step * task.step_seconds, text)

        work = [Job(t.id, run.execute, (t, self.threads), _limit(t)) for t in missing.values()]
        self.executor.run(work, done, progress)

    def _keep(self, made: Record) -> None:
        self.store.put(made)
        if self.kept is not None:
            self.kept(made)

    def time(self, plan: Plan, metrics: Iterable[str] | None, result: Comparison) -> None:
        """One exclusive pass over all methods together: ratios only count within it."""
        chosen = None if metrics is None else sorted(metrics)
        spec = {
            "kind": "timing",
            "problem": {"slug": plan.problem, "settings": plan.settings},
            "methods": sorted((e.address, e.slug, e.arguments, e.source) for e in plan.entries),
            "metrics": chosen,
            "threads": 1,
        }
        if plan.sources.get("data") is not None:  # what a step takes depends on them; a problem has its own otherwise
            spec["data"] = plan.data["sha256"]
        name = record.identity(spec)
        if self.store.has(name):
            return
        self.listener.begin("timing", 1.0)
        outcomes: list[Outcome] = []
        before = environment.load()
        job = Job(name, time_task, (plan.problem, plan.settings, plan.sources, plan.entries, chosen), 3600.0, alone=True)
        self.executor.run([job], outcomes.append, lambda *_: None)
        outcome = outcomes[0]
        self._keep(
            {
                "schema": record.SCHEMA,
                "id": name,
                "kind": "timing",
                "status": outcome.status,
                "reason": outcome.reason,
                "spec": spec,
                "address": ",".join(e.address for e in plan.entries),
                "times": outcome.value or {},
                "resources": {"threads": 1, "load_before": before, "load_after": environment.load()},
                "environment": environment.describe(),
                "command": plan.command(),
                "finished": run.now(),
            }
        )
        result.failed += outcome.status != "ok"
        if outcome.status != "ok":
            self.listener.note(f"timing: {outcome.status}: {outcome.reason}")


def time_task(
    problem: str,
    settings: dict[str, Any],
    sources: dict[str, Any],
    entries: list[Entry],
    metrics: list[str] | None,
    progress: Callable[[int, float], None],
) -> dict[str, Any]:
    """The timing pass, in a process of its own."""
    instance = planning.build_problem(problem, {**settings, **sources})
    return timing.measure(instance, entries, instance.load(0), threads=1, metrics=metrics)


def _limit(task: Task) -> float:
    """Wall time is only a safety limit: three times what the calibration promised, and time to evaluate."""
    return 3 * task.spec["steps"] * task.step_seconds + 60 * catalogue.problem(task.spec["problem"]["slug"]).minutes
