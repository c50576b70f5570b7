"""From examples to a checked file: train, convert, prune where asked, print, and compare the file with the model."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instar.interfaces import Examples, Monitor
from instar.lab.programs.printing import python
from instar.lab.programs.program import Program
from instar.lab.programs.pruning import Pruned, prune
from instar.lab.programs.training import accuracy
from instar.lab.programs.transformer_programs import TransformerPrograms

CHECKED = 10_000
"""Random sequences on which file and model are compared, beside those of the test."""
_PRUNED_ON = 1_000

Progress = Callable[[str, int, int], None]
"""Told (what is done, how much of it, of how much)."""


@dataclass(frozen=True)
class Made:
    """A printed program and what is known of it."""

    program: Program
    text: str
    accuracy: float
    """The share of test labels that the file gets right."""
    sequences: float
    """The share of test sequences whose labels are all right."""
    checked: int
    """Sequences on which the file was compared with the model."""
    different: tuple[tuple[str, ...], ...]
    """Those for which they differ: none, unless the program was pruned."""
    pruned: Pruned | None
    seconds: dict[str, float]
    """Of training, conversion and checking."""


def make(
    learner: TransformerPrograms,
    parts: tuple[Examples, Examples, Examples],
    *,
    steps: int,
    batch: int,
    seed: int = 0,
    pruned: float | None = None,
    monitor: Monitor | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Made:
    """Train the learner on the first part, choose by the second, and judge the printed file on the third.

    Args:
        steps: of all restarts together. pruned: the share of labels that pruning may change on up to 1,000 training sequences;
            None leaves the program whole. All others: as of `Labeller.fit`.

    Raises what fitting and converting raise, DataError where the test holds what cannot be read.
    """
    train, valid, test = parts
    clock = time.perf_counter()
    learner.fit(train, valid, steps=steps, batch=batch, seed=seed, monitor=monitor, checkpoint=checkpoint)
    trained = time.perf_counter()
    program = learner.program()
    found = None
    if pruned is not None:
        shown = train.tokens[:_PRUNED_ON]
        found = prune(program, shown, tolerance=pruned, progress=_named(progress, "pruning"))
        program = found.program
    text = python(program)
    converted = time.perf_counter()
    rows = [*test.tokens, *drawn(program, CHECKED, seed)]
    said = answers(text, rows, _named(progress, "checking"))
    different = tuple(tuple(row) for row, a, b in zip(rows, said, learner.predict(rows), strict=True) if a != b)
    own = said[: len(test)]
    whole = [
        all(a == b for a, b in zip(row, labels, strict=True) if b is not None)
        for row, labels in zip(own, test.labels, strict=True)
    ]
    return Made(
        program=program,
        text=text,
        accuracy=accuracy(own, test),
        sequences=sum(whole) / max(1, len(whole)),
        checked=len(rows),
        different=different,
        pruned=found,
        seconds={
            "training": trained - clock,
            "conversion": converted - trained,
            "checking": time.perf_counter() - converted,
        },
    )


def answers(text: str, rows: Sequence[Sequence[str]], progress: Callable[[int, int], None] | None = None) -> list[list[str]]:
    """What a printed program says, executed in an empty namespace. Only for programs that were printed here."""
    namespace: dict[str, Any] = {}
    exec(compile(text.encode(), "program.py", "exec"), namespace)
    found = []
    for done, row in enumerate(rows, 1):
        found.append(namespace["run"](row))
        if progress is not None and done % 500 == 0:
            progress(done, len(rows))
    return found


def drawn(program: Program, count: int, seed: int) -> list[list[str]]:
    """Random sequences of the program's tokens, of all its lengths: not those of the task alone."""
    draw = random.Random(seed)
    return [draw.choices(program.tokens, k=draw.randint(1, program.length)) for _ in range(count)]


def _named(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(name, done, total)
