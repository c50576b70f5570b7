"""What methods are compared on."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from instar.items import Floor, Items

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Data:
    """What `Problem.load` returns: three splits of one schema, and what identifies them."""

    train: Any
    valid: Any
    test: Any
    sha256: str
    """Hash of the content and of the split: equal means comparable."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For people: names of files, bytes, items in each split."""


@dataclass(frozen=True)
class Workload:
    """Something to be timed: `prepare(subject)` gives a function without arguments; one call of it does `units` units of work.

    The metric is seconds (or its inverse) per unit, as the problem's card says.
    """

    metric: str
    prepare: Callable[[Any], Callable[[], object]]
    units: float = 1.0


class Monitor(Protocol):
    """What training tells while it runs. Returning True asks it to stop after this step."""

    def __call__(self, step: int, loss: float) -> bool | None: ...


class Problem(abc.ABC):
    """What methods are compared on: real data, a split, metrics, and how each kind of method becomes the subject under test.

    Constructor arguments are its settings. Its card names metrics (unit, direction, margin) and the baseline. The engine
    owns seeds, tuning, timing and the test split.
    """

    accepts: ClassVar[Mapping[type, str]]
    """Interface -> name of the method of this class that lifts it: `lift(build, data, seed) -> subject`."""

    tokens_per_step: int
    """Units of training data a step consumes (budgets such as `5Mtok` are divided by it)."""

    timed_steps: ClassVar[int] = 20
    """Steps whose mean is the price of one in a budget of seconds: whole periods of what is done every ten."""

    @abc.abstractmethod
    def load(self, seed: int) -> Data:
        """The data; the seed matters only to generated data. Raises DataError when there is none or too little."""

    @abc.abstractmethod
    def fit(
        self, subject: Any, train: Any, *, steps: int, seed: int, monitor: Monitor | None = None, checkpoint: Path | None = None
    ) -> None:
        """Train in place for exactly `steps` steps; data order is a function of (seed, step) alone.

        With `checkpoint`, progress is saved there and taken up again to the bit.
        """

    @abc.abstractmethod
    def evaluate(self, subject: Any, split: Any) -> dict[str, Items]:
        """Every item of the split, scored: metric id -> items, in a fixed order at any batch size."""

    def costs(self, subject: Any) -> dict[str, float]:
        """Deterministic costs by metric id: FLOPs, bytes, parameters. Equal on every machine."""
        return {}

    def floors(self, data: Data) -> dict[str, Floor]:
        """What a predictor without the ability asked for, fitted on the training split, scores on the test split, by metric id.

        Two methods that both stay there have learnt nothing of it, and are not said to be level.
        """
        return {}

    def workloads(self) -> Iterable[Workload]:
        """What the exclusive timing pass measures."""
        return ()
