"""Taking out of a program what decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from instar.errors import DataError, ShapeError
from instar.lab.programs import runtime
from instar.lab.programs.program import ONES, Program, Value


@dataclass(frozen=True)
class Pruned:
    """What is left, and what was taken out."""

    program: Program
    dropped: tuple[str, ...]
    """Variables that no longer add to any label, in the order in which they went."""
    removed: tuple[str, ...]
    """Steps that nothing reads any more."""
    changed: int
    """Labels that are other than before, of those asked for."""
    asked: int


def prune(
    program: Program,
    sequences: Sequence[Sequence[str]],
    *,
    tolerance: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Pruned:
    """Leave out of the sums every variable without which the labels of `sequences` stay, then every step that nothing reads.

    Variables are tried one by one, those first whose weights differ least between values and labels; each that changes more than
    the share `tolerance` of the whole program's labels stays. Beyond the given sequences the pruned program may answer otherwise.
    Cost: a sum over variables for each variable and token. Raises DataError for no sequences, ShapeError for a bad tolerance.
    """
    if not 0 <= tolerance < 1:
        raise ShapeError(f"tolerance is a share of labels, 0 or more and less than 1; received {tolerance}.")
    if not sequences:
        raise DataError("Pruning needs sequences on which the program shall stay the same; received none.")
    streams = [program.stream(tokens) for tokens in sequences]
    before = _answers(program, streams)
    asked = sum(map(len, before))
    order = sorted([*program.weights, *program.numeric], key=lambda name: _spread(program, name))
    left, dropped, changed = program, [], 0
    for done, name in enumerate(order, 1):
        fewer = replace(
            left,
            weights={n: rows for n, rows in left.weights.items() if n != name},
            numeric={n: row for n, row in left.numeric.items() if n != name},
        )
        wrong = sum(a != b for x, y in zip(before, _answers(fewer, streams), strict=True) for a, b in zip(x, y, strict=True))
        if wrong <= tolerance * asked:
            left, changed = fewer, wrong
            dropped.append(name)
        if progress is not None:
            progress(done, len(order))
    swept = sweep(left)
    kept = {step.name for step in swept.steps}
    removed = tuple(step.name for step in program.steps if step.name not in kept)
    return Pruned(swept, tuple(dropped), removed, changed, asked)


def sweep(program: Program) -> Program:
    """Without the steps whose variable is neither read nor weighed: the same labels for every input."""
    needed, kept = {*program.weights, *program.numeric}, []
    for step in reversed(program.steps):
        if step.name in needed:
            kept.append(step)
            needed.update(step.reads)
    return replace(program, steps=tuple(reversed(kept)))


def _spread(program: Program, name: str) -> int:
    """The largest difference that a variable can make between two labels."""
    rows = [program.numeric[name]] if name in program.numeric else program.weights[name].values()
    much = program.length if name in program.numeric and name != ONES else 1
    return max((much * (max(row) - min(row)) for row in rows), default=0)


def _answers(program: Program, streams: Sequence[dict[str, list[Value]]]) -> list[list[int]]:
    """Places of labels, from variables that are known already."""
    found = []
    for stream in streams:
        variables = {name: stream[name] for name in program.weights}
        numbers = {name: stream[name] for name in program.numeric}
        tokens = len(stream[ONES])
        rows = runtime.add_up(variables, program.weights, numbers, program.numeric, tokens, len(program.labels))  # type: ignore[arg-type]
        if program.pooled:
            rows = [[sum(column) for column in zip(*rows, strict=True)]]
        found.append([row.index(max(row)) for row in rows])
    return found
