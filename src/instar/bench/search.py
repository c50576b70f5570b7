"""Tuning trials in the order in which they can be run: all at once, or each from what the ones before it found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instar import catalogue
from instar.bench import tune
from instar.bench.plan import Plan, Task
from instar.bench.record import Store


@dataclass(frozen=True)
class Trial:
    """One setting of one method, as a task on the validation split."""

    task: Task
    index: int
    chosen: dict[str, Any]


def rounds(plan: Plan, root: Path, store: Store) -> Iterator[list[Trial]]:
    """Trials that may run beside each other, round by round; trial 0 of every method is its default setting.

    Random search is one round. TPE is a round for each trial, which reads the records of the rounds before: the iteration ends
    where one of them is missing. The same records give the same trials, so that an interrupted search goes on. Raises
    MissingExtraError.
    """
    indices = range(plan.trials if plan.trials > 1 else 0)
    if plan.search == "random":
        if indices:
            yield [_trial(plan, root, entry.address, i, []) for i in indices for entry in plan.entries]
        return
    metric = plan.card.metric(plan.card.primary)
    tried: dict[str, list[tune.Tried]] = {entry.address: [] for entry in plan.entries}
    for index in indices:
        made = [_trial(plan, root, address, index, seen) for address, seen in tried.items()]
        yield made
        if not all(store.has(trial.task.id) for trial in made):
            return
        for trial in made:
            found = store.get(trial.task.id)
            ok = found["status"] == "ok" and metric.id in found["metrics"]
            tried[trial.task.address].append((trial.chosen, found["metrics"][metric.id]["value"] if ok else None))


def best(plan: Plan, trials: Iterable[Trial], store: Store) -> dict[str, tuple[int, dict[str, Any]]]:
    """Address -> number and setting of the trial that did best on the validation split; the default where all failed."""
    metric = plan.card.metric(plan.card.primary)
    chosen: dict[str, tuple[int, dict[str, Any]]] = {}
    trials = list(trials)
    for entry in plan.entries:
        # Of trials that chose the same the first, which is the default where nothing varies.
        own = {trial.task.id: trial for trial in reversed(trials) if trial.task.address == entry.address}
        winner = tune.best((store.get(name) for name in own), metric.id, metric.direction)
        chosen[entry.address] = (own[winner["id"]].index, own[winner["id"]].chosen) if winner else (0, {})
    return chosen


def _trial(plan: Plan, root: Path, address: str, index: int, tried: list[tune.Tried]) -> Trial:
    entry = next(entry for entry in plan.entries if entry.address == address)
    preset = address.partition(":")[2]
    method, problem = (
        {name: knob.of(preset) for name, knob in knobs.items() if (name in plan.tune if plan.tune else name not in fixed)}
        for knobs, fixed in ((catalogue.method(entry.slug).knobs, entry.fixed), (plan.card.knobs, plan.fixed))
    )
    if plan.search == "random":
        chosen = tune.sample(method, problem, entry.slug, index)
    else:
        from instar.bench import tune_tpe

        direction = plan.card.metric(plan.card.primary).direction
        chosen = tune_tpe.propose(method, problem, entry.slug, index, tried, direction)
    return Trial(plan.trial_task(root, entry, index, chosen), index, chosen)
