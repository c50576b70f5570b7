"""A stored model with an adapter trained on a task and merged into it, as the next stored version."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from instar.adapters import merge_and_unload, save
from instar.adapters.attaching import arguments, slug
from instar.bench.seeds import initialising
from instar.data import pretrained
from instar.errors import AdapterError, PlanError, ShapeError
from instar.gate.predictions import Cases
from instar.gate.result import Result
from instar.interfaces import Adapter, Monitor, Updater, Versions
from instar.problems import adapting as training
from instar.receipts.facts import Facts
from instar.release import gating, recording, writing
from instar.release import kept as keeping

_KEPT = 64
"""Logits of a teacher that are kept for a token: all of a large vocabulary would fill the disk."""


class Task(Protocol):
    """What is learnt: a model with a place for it, and its data."""

    name: str
    """Of the data."""
    model: Any
    tokenizer: Any
    items: int
    """That it is trained on."""
    heads: Sequence[str]
    """Modules that are trained whole beside the adapter, and their rate."""
    head_lr: float
    unrelated: str
    """encoder or causal: how other texts are looked at (`kept.answers`)."""

    @property
    def body(self) -> Any:
        """The model or the part of it that looks at other texts."""

    def batch(self, index: int, seed: int) -> Any:
        """The rows of a step."""

    def loss(self, model: nn.Module, rows: Any) -> Tensor:
        """What training lowers."""

    def untrained(self) -> dict[str, float]:
        """`score` of the version before, which may have had no head."""

    def score(self) -> dict[str, float]:
        """Of held-out items, figures by name."""

    def cases(self) -> Cases:
        """What the gate asks the version before and the new one."""

    def versions(self, old: str | Path) -> Versions:
        """The model under its active adapter, and an old version that does the task. Raises ModelError where there is none."""

    def tasks(self) -> Cases:
        """Held-out items of the task, which the gate asks the old version and the new one."""


@dataclass(frozen=True)
class Adapted:
    """What was trained, and what it did."""

    folder: Path
    receipt: Facts
    items: int
    """That it was trained on."""
    trained: int
    """Numbers that were trained."""
    before: dict[str, float]
    """Of held-out items: `Task.score`."""
    after: dict[str, float]
    kept: dict[str, float]
    """Of other text: `kept.compared`."""
    gate: Result | None


def adapt(
    name: str | Path,
    data: str,
    adapter: Adapter,
    out: str | Path,
    *,
    where: str | Sequence[str] | None = None,
    like: str | Path | None = None,
    updater: Updater | None = None,
    steps: int = 200,
    batch: int = 8,
    length: int = 256,
    dtype: str = "float32",
    seed: int = 0,
    gated: bool = True,
    command: str = "",
    monitor: Monitor | None = None,
    progress: Callable[[str], Any] = lambda name: None,
) -> Adapted:
    """Train an adapter on a task, merge it, and write the result with its receipt and the gate.

    Args:
        name: a model as in `pretrained.floats`; it stays as it is. data: prompts and what should follow (JSONL, or e2e) for a
            causal model; sentences and their class (CSV, or a name of `data.sentences`), for which the model gets a head. A tenth
            is held out and scored before and after.
        where: layers, as `Adapter.attach`. steps, batch: of training at the rate of the method. length: most tokens of an item.
        like: a version that does this task already, of another base with the same vocabulary: once the adapter is trained,
            `updater` (by default MUSCLE) trains it on for as many steps, so that what that version says rightly stays right.
        dtype: of the base while it is trained; the weights are written in the type that they were stored in.
        gated: whether both versions are asked: other text for a causal model, the held-out sentences for a classifier; and with
            `like`, that version and the new one, held-out items of the task.

    The adapter alone is kept in OUT/adapter, in the layout of `peft`. Raises DataError, AdapterError, ModelError, OutputError,
    DivergedError; nothing is written then.
    """
    if min(steps, batch) < 1 or length < 8:
        raise ShapeError(
            f"adapt expects steps and batch of 1 or more and length of 8 or more; received {steps}, {batch}, {length}."
        )
    if updater is not None and like is None:
        raise PlanError("An updater keeps what an old version of the task says: name that version with like.")
    writing.vacant(Path(out))
    source = pretrained.floats(name)
    with initialising(seed):
        task = _task(source, data, batch, length, dtype)
    # Before the work: where there is nothing to ask, nothing is to be written.
    cases = None if not gated else task.cases() if like is None else task.tasks()
    model, texts = task.model, keeping.texts()
    before, usual = task.untrained(), keeping.answers(task.body, task.tokenizer, task.unrelated, texts)
    settings: dict[str, Any] = {}
    start = time.perf_counter()
    with initialising(seed):
        adapter.attach(model, where, modules_to_save=task.heads)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    training.train(
        model,
        lambda index: task.batch(index, seed),
        task.loss,
        steps=steps,
        seed=seed,
        heads=task.heads,
        head_lr=task.head_lr,
        monitor=monitor,
    )
    if like is not None:
        settings |= _agree(task, like, updater, steps, seed, monitor)
    model.eval()
    after = task.score()
    settings |= {**arguments(adapter), "data": task.name, "items": task.items, "steps": steps, "batch": batch, "seed": seed}
    with writing.version(out, source) as folder, tempfile.TemporaryDirectory(dir=folder) as aside:
        save(model, Path(aside) / writing.ADAPTER)
        merge_and_unload(model)
        kept = keeping.compared(usual, keeping.answers(task.body, task.tokenizer, task.unrelated, texts), task.unrelated)
        seconds = time.perf_counter() - start
        writing.weights(model.to(pretrained.stored_dtype(source)), folder)
        shutil.move(Path(aside) / writing.ADAPTER, folder / writing.ADAPTER)
        title = f"{slug(adapter)} on {task.name}"
        said = recording.record(source, folder, method=slug(adapter), title=title, settings=settings, seconds=seconds)
    items = task.items
    del model, task.model
    judged = None
    if cases is not None:
        judged = gating.gate(like or name, Path(out), cases, command=command, progress=progress)
    return Adapted(Path(out), said, items, trained, before, after, kept, judged)


def _agree(
    task: Task, like: str | Path, updater: Updater | None, steps: int, seed: int, monitor: Monitor | None
) -> dict[str, Any]:
    """Train the adapter on, so that it keeps what an old version says rightly. What was done, for the receipt."""
    from instar.compat.muscle import Muscle

    chosen = Muscle(keep=_KEPT) if updater is None else updater
    answering = chosen.update(task.versions(like), steps=steps, seed=seed, monitor=monitor)
    if answering.passes != 1:
        raise AdapterError(
            f"{type(chosen).__name__} answers with {answering.passes} passes: that is no model that can be written."
        )
    return {"like": str(like), "updater": type(chosen).__name__}


def _task(source: Path, data: str, batch: int, length: int, dtype: str) -> Task:
    from instar.data import e2e
    from instar.release.classes import Classes
    from instar.release.pairs import Pairs

    kind = Pairs if data in e2e.SETS or Path(data).suffix.lower() in (".jsonl", ".ndjson") else Classes
    made: Task = kind(source, data, batch, length, dtype)
    return made
