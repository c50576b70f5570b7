"""Why a program says what it says: what each variable adds for each label, and every step as a debugger shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instar.errors import DataError
from instar.lab.programs.program import Head, Program, Value


@dataclass(frozen=True)
class Contribution:
    """What a variable adds at one token, in thousandths of a nat by label."""

    variable: str
    value: Value
    added: dict[str, int]


@dataclass(frozen=True)
class Explanation:
    """One token's label (of a pooled program: what that token adds to the label of all)."""

    token: str
    label: str
    """What the program says."""
    runner_up: str
    margin: int
    """By how much the label leads before the runner-up, in thousandths; 0 where a tie went to the first label."""
    contributions: tuple[Contribution, ...]
    """Those first that speak most for the label against the runner-up."""


@dataclass(frozen=True)
class Moment:
    """A step at one token."""

    step: str
    place: int
    reads: dict[str, Value]
    """The values read at this token."""
    wants: Value | None
    """Of a head, the value of its key that it looks for; None: no value that there can be."""
    looked_at: tuple[int, ...]
    """Of a head, the places that match; of one that does not count, the one that it reads."""
    output: Value


def explain(program: Program, tokens: Sequence[str]) -> list[Explanation]:
    """For each token, what every variable adds. Raises what `program.run` raises.

    The contributions of a token (of all tokens where pooled) sum to `program.scores`.
    """
    stream = program.stream(tokens)
    added, scores = program.contributions(stream), program.scores(tokens)
    found = []
    for place, token in enumerate(tokens):
        row = scores[0 if program.pooled else place]
        first = row.index(max(row))
        second = max((i for i in range(len(row)) if i != first), key=lambda i: (row[i], -i))
        parts = [
            Contribution(name, stream[name][place], dict(zip(program.labels, columns[place], strict=True)))
            for name, columns in added.items()
        ]
        label, other = program.labels[first], program.labels[second]
        parts.sort(key=lambda part: part.added[other] - part.added[label])
        found.append(Explanation(token, label, other, row[first] - row[second], tuple(parts)))
    return found


def trace(program: Program, tokens: Sequence[str], place: int | None = None) -> list[Moment]:
    """Every step at every token, or at one place, in the order in which they are made. Raises DataError for a place outside."""
    if place is not None and not 0 <= place < len(tokens):
        raise DataError(f"There are {len(tokens)} tokens, at places 0 to {len(tokens) - 1}; received the place {place}.")
    stream = program.stream(tokens)
    moments = []
    for step in program.steps:
        reader = isinstance(step, Head) and not step.counts
        places = step.places(stream, program.causal) if reader else []  # type: ignore[union-attr]
        for i in range(len(tokens)) if place is None else [place]:
            if isinstance(step, Head):
                asked = stream[step.query][i]
                seen = range(i + 1 if program.causal else len(tokens))
                matching = tuple(j for j in seen if step.matches(asked, stream[step.key][j]))
                looked = (places[i],) if reader else matching
                moments.append(Moment(step.name, i, {step.query: asked}, step.match.get(asked), looked, stream[step.name][i]))
            else:
                reads = {name: stream[name][i] for name in step.reads}
                moments.append(Moment(step.name, i, reads, None, (), stream[step.name][i]))
    return moments


def as_text(program: Program, tokens: Sequence[str], place: int, most: int = 8) -> str:
    """The trace and the explanation of one place, to be read in a terminal."""
    lines = [f"{place}: {tokens[place]!r}" if 0 <= place < len(tokens) else ""]
    for moment in trace(program, tokens, place):
        step = program.step(moment.step)
        read = ", ".join(f"{name}={value!r}" for name, value in moment.reads.items())
        if not isinstance(step, Head):
            lines.append(f"  {moment.step} = {moment.output!r}  from {read}")
            continue
        wants = f"{step.key} == {moment.wants!r}" if moment.wants is not None else "nothing that there is"
        what = f"sum of {step.value}" if step.counts else step.value
        at = ", ".join(map(str, moment.looked_at)) or "no place"
        lines.append(f"  {moment.step} = {moment.output!r}  {what} at {at}; {read} looks for {wants}")
    said = explain(program, tokens)[place]
    lines.append(f"  says {said.label!r}, before {said.runner_up!r} by {said.margin}")
    for part in said.contributions[:most]:
        lines.append(f"    {part.added[said.label] - part.added[said.runner_up]:+6d}  {part.variable} = {part.value!r}")
    return "\n".join(lines)
