"""What the doors of local models share: the subject that answers, its answers, and how items become batches."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from instar.errors import ModelError
from instar.gate.predictions import Cases, Json, Predictions

if TYPE_CHECKING:
    from instar.doors.settings import Settings

Tell = Callable[[int], None]
"""Called with the number of items that are answered."""


@dataclass
class Answers:
    """Of all cases, in their order; `errors` is by place."""

    outputs: list[Json]
    seconds: NDArray[np.float64]
    """Wall time of the batch in which each was answered: what an item waits for its answer."""
    errors: dict[int, str] = field(default_factory=dict)
    embeddings: NDArray[np.float32] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def blank(cls, n: int) -> Answers:
        return cls([None] * n, np.full(n, np.nan))

    def predictions(self, name: str, cases: Cases, costs: dict[str, float], facts: dict[str, Any]) -> Predictions:
        """These answers beside what the cases say."""
        return Predictions(
            name,
            list(cases.ids),
            self.outputs,
            labels=cases.labels,
            embeddings=self.embeddings,
            inputs=list(cases.inputs),
            seconds=self.seconds,
            errors={cases.ids[place]: reason for place, reason in self.errors.items()},
            columns=cases.columns,
            costs=costs,
            facts={**facts, **self.facts},
        )


class Subject(abc.ABC):
    """A loaded model that answers cases. `model` is what is measured."""

    model: Any
    """A torch module of any library."""

    @abc.abstractmethod
    def answer(self, cases: Cases, task: str, settings: Settings, tell: Tell) -> Answers:
        """Answers of a task; ModelError where this kind of model has none."""

    def refuse(self, task: str, why: str) -> ModelError:
        """The error for a task that this model cannot do."""
        return ModelError(f"{type(self.model).__name__} cannot answer the task {task}: {why}")


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Places in batches, the longest first: little padding, and too little memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for first in range(0, len(order), size):
        yield order[first : first + size]
