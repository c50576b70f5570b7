"""What one version said about each item, and what a version is asked: free of torch, of models and of file formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.errors import DataError

Json = Any
"""A JSON value: None, bool, number, text, list or object."""

_SHOWN = 20


@dataclass(frozen=True)
class Predictions:
    """The predictions of one version: parallel columns over N items."""

    name: str
    """How a person calls this version; shown everywhere."""
    ids: list[str]
    outputs: list[Json]
    """What was said; None where there is no answer (the item is missing)."""
    labels: list[Json] | None = None
    """What is right."""
    scores: NDArray[np.float64] | None = None
    """[N], a quality given from outside (a judge, a harness), higher is better; NaN only where the output is missing."""
    embeddings: NDArray[np.float32] | None = None
    """[N, D], used to group what broke by likeness."""
    inputs: list[str] | None = None
    """What was asked, for people."""
    seconds: NDArray[np.float64] | None = None
    """[N], how long each answer took; NaN where unknown."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Id -> why there is no answer."""
    columns: Mapping[str, list[Json]] = field(default_factory=dict)
    """Every other column: possible slices."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """Of the run, where one was made: `size_bytes` of the model, `peak_bytes` of memory, `wall_seconds`, `cpu_seconds`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, for people: source, settings, versions, hashes."""

    def __post_init__(self) -> None:
        n = len(self.ids)
        if n == 0:
            raise DataError(f"{self.name} holds no item.")
        lengths = {"output": self.outputs, "label": self.labels, "score": self.scores, "embedding": self.embeddings}
        lengths |= {"input": self.inputs, "seconds": self.seconds, **self.columns}
        for column, values in lengths.items():
            if values is not None and len(values) != n:
                raise DataError(f"{self.name}: column '{column}' has {len(values)} values for {n} ids.")
        unique(self.ids, self.name)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Cases:
    """What a version is asked: the items of an evaluation file, and what else the task needs."""

    name: str
    ids: list[str]
    inputs: list[str]
    labels: list[Json] | None = None
    choices: list[list[str]] | None = None
    """The answers to choose from, item by item (multiple choice)."""
    columns: Mapping[str, list[Json]] = field(default_factory=dict)
    examples: Sequence[tuple[str, Json]] = ()
    """Labelled texts from which an encoder without a head learns its classes."""
    documents: Sequence[tuple[str, str]] = ()
    """(id, text): what is searched in retrieval."""

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError(f"{self.name} holds no item.")
        unique(self.ids, self.name)

    def __len__(self) -> int:
        return len(self.ids)


def unique(ids: Sequence[str], name: str) -> None:
    """Raise DataError that lists every id that occurs more than once."""
    if len(set(ids)) == len(ids):
        return
    repeated = [i for i, n in Counter(ids).items() if n > 1]
    raise DataError(f"{name}: {len(repeated)} ids occur more than once: {listed(repeated)}. An id names one item.")


def listed(names: Sequence[str]) -> str:
    """Some names for a message, and how many are left out."""
    shown = ", ".join(f"'{n[:60]}'" for n in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
