"""From a trained network to a program: every choice made, every table written out over all inputs that there can be."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from instar.errors import DataError
from instar.lab.programs.heads import PredicateHeads
from instar.lab.programs.lookups import Lookups
from instar.lab.programs.network import ProgramNetwork
from instar.lab.programs.program import ONES, POSITIONS, TOKENS, Branches, Head, Program, Step, Table, Thresholds, Value

LARGEST = 2**22
"""Inputs of one table: more would take minutes and fill a file that nobody reads."""
_AT_ONCE = 2**15


@dataclass
class Stream:
    """The variables so far: which values each can have, by the network's index, and how large each number can become."""

    values: dict[str, dict[int, Value]] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Categorical variables, in the order of the network's stream."""
        return list(self.values)

    @property
    def numbers(self) -> list[str]:
        """Numerical variables, in the order of the network's stream."""
        return list(self.largest)


def discretise(network: ProgramNetwork, tokens: Sequence[str], labels: Sequence[str], unknown: str | None = None) -> Program:
    """The program that equals `network(…, how="argmax")` on every sequence of known tokens.

    Args:
        tokens, labels: what the network's indices stand for. unknown: see `Program`.

    Values that a variable can never have are left out: of tokens and places those that there are not, of a head's output those
    that its variable has not, of a table's output those that no input gives. Numbers go up to the exact bound of what is counted.
    Raises DataError for a table of more than four million inputs. Cost: k^reads for a table, the product of bounds for a
    numerical one.
    """
    shape = network.shape
    start, embedding = _embedding(network, tokens)
    stream = Stream({**start, POSITIONS: {i: i for i in range(shape.length)}}, {ONES: 1})
    steps: list[Step] = []
    for layer, parts in enumerate(network.blocks):
        attn, num_attn = parts["attn"], parts["num_attn"]  # type: ignore[index]
        heads = [_head(attn, stream, h, f"attn_{layer}_{h}") for h in range(shape.cat_heads)]
        counts = [_head(num_attn, stream, h, f"num_attn_{layer}_{h}", counts=True) for h in range(shape.num_heads)]
        bounds = {step.name: _bound(step, stream, shape.length) for step in counts}
        stream.values |= {step.name: dict(stream.values[step.value]) for step in heads}
        stream.largest |= bounds
        tables = [_table(parts["mlp"], stream, i, f"mlp_{layer}_{i}") for i in range(shape.cat_mlps)]  # type: ignore[index]
        limits = [_thresholds(parts["num_mlp"], stream, i, f"num_mlp_{layer}_{i}") for i in range(shape.num_mlps)]  # type: ignore[index]
        made: list[tuple[Table | Thresholds, set[int]]] = [*tables, *limits]
        for table, values in made:
            stream.values[table.name] = {value: value for value in sorted(values)}
        steps += [*heads, *counts, *(table for table, _ in made)]
    weights, numeric = _weights(network.weights(), stream, shape.k)
    return Program(
        tokens=tuple(tokens),
        labels=tuple(labels),
        length=shape.length,
        steps=tuple(steps),
        weights=weights,
        numeric=numeric,
        embedding=embedding,
        causal=shape.causal,
        pooled=shape.pooled,
        unknown=unknown,
    )


def _embedding(network: ProgramNetwork, tokens: Sequence[str]) -> tuple[dict[str, dict[int, Value]], dict[str, tuple[int, ...]]]:
    """What tokens are read as: themselves, or values of learnt variables."""
    if not network.shape.embedded:
        return {TOKENS: dict(enumerate(tokens))}, {}
    chosen = network.embedding.detach().argmax(-1).tolist()
    columns = {f"token_{i}": sorted(set(column)) for i, column in enumerate(zip(*chosen, strict=True))}
    return (
        {name: {value: value for value in column} for name, column in columns.items()},
        {token: tuple(row) for token, row in zip(tokens, chosen, strict=True)},
    )


def _head(heads: PredicateHeads, stream: Stream, index: int, name: str, *, counts: bool = False) -> Head:
    query, key, value = (int(getattr(heads, part)[index].argmax()) for part in ("query", "key", "value"))
    asked, given = stream.values[stream.names[query]], stream.values[stream.names[key]]
    wanted = heads.predicate[index].argmax(-1).tolist()
    match = {printed: given.get(wanted[i]) for i, printed in asked.items()}
    values = stream.numbers if counts else stream.names
    return Head(name, stream.names[query], stream.names[key], values[value], match, counts)


def _bound(step: Head, stream: Stream, length: int) -> int:
    """The largest sum: each place has its own number, so that a query finds it once; other keys may match everywhere."""
    if all(key is None for key in step.match.values()):
        return 0
    return stream.largest[step.value] * (1 if step.key == POSITIONS else length)


def _reads(tables: Lookups, index: int, names: list[str]) -> tuple[list[str], list[int]]:
    """The variables that a table reads, each once, and which of them each of its inputs is."""
    chosen = [names[int(gate.argmax())] for gate in tables.gates[index]]
    distinct = list(dict.fromkeys(chosen))
    return distinct, [distinct.index(name) for name in chosen]


def _outputs(tables: Lookups, index: int, inputs: Tensor) -> NDArray[np.int64]:
    """What one network puts out for inputs [N, l·k] (or [N, l]), float64."""
    found = []
    with torch.no_grad():
        for part in inputs.split(_AT_ONCE):
            hidden = torch.relu(part @ tables.w_in[index].double() + tables.b_in[index].double())
            found.append((hidden @ tables.w_out[index].double() + tables.b_out[index].double()).argmax(-1))
    return torch.cat(found).numpy()


def _refuse(name: str, size: int, reads: list[str]) -> None:
    if size > LARGEST:
        raise DataError(
            f"{name} reads {', '.join(reads)}, which have {size} combinations; {LARGEST} are the most that are written out. "
            "Train with fewer reads, fewer layers or shorter sequences."
        )


def _table(tables: Lookups, stream: Stream, index: int, name: str) -> tuple[Table, set[int]]:
    reads, places = _reads(tables, index, stream.names)
    domains = [stream.values[read] for read in reads]
    size = int(np.prod([len(domain) for domain in domains]))
    _refuse(name, size, reads)
    k = tables.w_out.shape[-1]
    inputs = torch.tensor(list(itertools.product(*domains)), dtype=torch.int64)
    outputs = _outputs(tables, index, F.one_hot(inputs[:, places], k).double().flatten(1)).tolist()
    keys = itertools.product(*(domain.values() for domain in domains))
    default = Counter(outputs).most_common(1)[0][0]
    listed = {key: output for key, output in zip(keys, outputs, strict=True) if output != default}
    return Table(name, tuple(reads), listed, default), set(outputs)


def _thresholds(tables: Lookups, stream: Stream, index: int, name: str) -> tuple[Thresholds, set[int]]:
    reads, places = _reads(tables, index, stream.numbers)
    sizes = [stream.largest[read] + 1 for read in reads]
    _refuse(name, int(np.prod(sizes)), reads)
    grid = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float64) for size in sizes)).view(-1, len(sizes))
    outputs = _outputs(tables, index, grid[:, places]).reshape(sizes)
    return Thresholds(name, tuple(reads), _branches(outputs)), set(np.unique(outputs).tolist())


def _branches(outputs: NDArray[np.int64]) -> Branches:
    """Where each axis begins something new."""
    if outputs.ndim == 0:
        return int(outputs)
    changed = np.any(np.diff(outputs, axis=0) != 0, axis=tuple(range(1, outputs.ndim)))
    starts = [0, *(int(i) + 1 for i in np.flatnonzero(changed))]
    return tuple((start, _branches(outputs[start])) for start in starts)


def _weights(
    weights: Tensor, stream: Stream, k: int
) -> tuple[dict[str, Mapping[Value, tuple[int, ...]]], dict[str, tuple[int, ...]]]:
    """The classifier's columns by variable and value."""
    columns = weights.T.long().tolist()
    found: dict[str, Mapping[Value, tuple[int, ...]]] = {
        name: {printed: tuple(columns[place * k + i]) for i, printed in values.items()}
        for place, (name, values) in enumerate(stream.values.items())
    }
    first = len(stream.values) * k
    return found, {name: tuple(columns[first + i]) for i, name in enumerate(stream.numbers)}
