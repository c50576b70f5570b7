"""A Transformer Program as plain data: steps that each make one variable, and a table of what each value says for each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from instar.errors import DataError
from instar.lab.programs import runtime

Value: TypeAlias = "str | int"
"""A token, a place, a number, or the value of a table, which has no meaning but where it is read."""

Branches: TypeAlias = "int | tuple[tuple[int, Branches], ...]"
"""What a numerical table puts out: a value, or (from which number on, what holds there), the first from 0."""

TOKENS, POSITIONS, ONES = "tokens", "positions", "ones"


@dataclass(frozen=True)
class Head:
    """Attention: `match` says which value of `key` a value of `query` looks for, None for one that there never is."""

    name: str
    query: str
    key: str
    value: str
    match: Mapping[Value, Value | None]
    counts: bool = False
    """Sum the variable `value` over all that match, in place of reading it at the nearest."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The variables that it needs."""
        return (self.query, self.key, self.value)

    def matches(self, query: Value, key: Value) -> bool:
        """The predicate."""
        found = self.match.get(query)
        return found is not None and found == key

    def run(self, stream: Mapping[str, list[Value]], causal: bool) -> list[Value]:
        """The variable that it makes."""
        query, key, value = (stream[name] for name in self.reads)
        if self.counts:
            return list(runtime.aggregate_sum(query, key, value, self.matches, causal))  # type: ignore[arg-type]
        return runtime.aggregate(self.places(stream, causal), value)

    def places(self, stream: Mapping[str, list[Value]], causal: bool) -> list[int]:
        """Where each token looks, of a head that does not count."""
        return runtime.select_closest(stream[self.query], stream[self.key], self.matches, causal)


@dataclass(frozen=True)
class Table:
    """A lookup: what is not listed is `default`."""

    name: str
    reads: tuple[str, ...]
    outputs: Mapping[tuple[Value, ...], int]
    default: int

    def run(self, stream: Mapping[str, list[Value]], causal: bool) -> list[Value]:
        """The variable that it makes."""
        return [self.outputs.get(key, self.default) for key in zip(*(stream[name] for name in self.reads), strict=True)]


@dataclass(frozen=True)
class Thresholds:
    """A lookup of numbers, as nested thresholds: one level for each read variable."""

    name: str
    reads: tuple[str, ...]
    branches: Branches

    def run(self, stream: Mapping[str, list[Value]], causal: bool) -> list[Value]:
        """The variable that it makes."""
        return [self._at(numbers) for numbers in zip(*(stream[name] for name in self.reads), strict=True)]

    def _at(self, numbers: Sequence[Value]) -> int:
        found = self.branches
        for number in numbers:
            assert not isinstance(found, int)
            found = next(inner for start, inner in reversed(found) if start <= number)  # type: ignore[operator]
        assert isinstance(found, int)
        return found


Step: TypeAlias = "Head | Table | Thresholds"


@dataclass(frozen=True)
class Program:
    """tokens -> labels. Each token's label is that of the largest sum over variables of `weights`; the first of equal ones.

    Raises DataError for tokens that it does not know, and for no tokens or more than `length`.
    """

    tokens: tuple[str, ...]
    labels: tuple[str, ...]
    length: int
    steps: tuple[Step, ...]
    weights: Mapping[str, Mapping[Value, tuple[int, ...]]]
    """Variable -> value -> what it adds for each label, in thousandths of a nat."""
    numeric: Mapping[str, tuple[int, ...]]
    """Numerical variable -> what it adds for each label, times its number."""
    embedding: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Token -> values of its learnt variables `token_0`, …; empty where the token itself is the variable."""
    causal: bool = False
    pooled: bool = False
    """One label for the whole sequence, by the sum over its tokens."""
    unknown: str | None = None
    """The token that stands for all that are not known; None refuses them."""

    def known(self, tokens: Sequence[str]) -> list[str]:
        """The tokens as the program reads them."""
        if isinstance(tokens, str):
            raise DataError(f"Give a list of tokens; received the text {tokens[:40]!r}.")
        read = [t if self.unknown is None or t in self._kept else self.unknown for t in tokens]
        try:
            runtime.check_tokens(read, self.tokens, self.length)
        except ValueError as error:
            raise DataError(f"The program cannot read this: {error}.") from error
        return read

    @property
    def _kept(self) -> set[str]:
        return set(self.tokens)

    @property
    def given(self) -> list[str]:
        """The variables before the first step."""
        width = len(next(iter(self.embedding.values()), ()))
        return [*([f"token_{i}" for i in range(width)] if self.embedding else [TOKENS]), POSITIONS, ONES]

    def start(self, tokens: Sequence[str]) -> dict[str, list[Value]]:
        """The variables before the first step, at every token."""
        read = self.known(tokens)
        stream: dict[str, list[Value]] = {}
        if self.embedding:
            rows = [self.embedding[token] for token in read]
            stream |= {f"token_{i}": list(column) for i, column in enumerate(zip(*rows, strict=True))}
        else:
            stream[TOKENS] = list(read)
        return {**stream, POSITIONS: list(range(len(read))), ONES: [1] * len(read)}

    def stream(self, tokens: Sequence[str]) -> dict[str, list[Value]]:
        """Every variable at every token, by name, in the order in which they are made."""
        stream = self.start(tokens)
        for step in self.steps:
            stream[step.name] = step.run(stream, self.causal)
        return stream

    def contributions(self, stream: Mapping[str, list[Value]]) -> dict[str, list[tuple[int, ...]]]:
        """What each variable adds for each label, at each token."""
        added = {name: [rows[value] for value in stream[name]] for name, rows in self.weights.items()}
        for name, row in self.numeric.items():
            added[name] = [tuple(w * number for w in row) for number in stream[name]]  # type: ignore[misc]
        return added

    def scores(self, tokens: Sequence[str]) -> list[list[int]]:
        """The sums for each label, at each token (of a pooled program one row), in thousandths."""
        stream = self.stream(tokens)
        variables = {name: stream[name] for name in self.weights}
        numbers = {name: stream[name] for name in self.numeric}
        rows = runtime.add_up(variables, self.weights, numbers, self.numeric, len(tokens), len(self.labels))  # type: ignore[arg-type]
        return [[sum(column) for column in zip(*rows, strict=True)]] if self.pooled else rows

    def run(self, tokens: Sequence[str]) -> list[str]:
        """The label of each token; of a pooled program, one."""
        return [self.labels[row.index(max(row))] for row in self.scores(tokens)]

    def step(self, name: str) -> Step:
        """The step that makes a variable. Raises DataError."""
        for step in self.steps:
            if step.name == name:
                return step
        raise DataError(f"The program has no step {name!r}; it has {', '.join(s.name for s in self.steps) or 'none'}.")
