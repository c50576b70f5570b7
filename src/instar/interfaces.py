"""Every interface of Instar, without logic: the page to read first.

Axes. One order everywhere, named by the legend
    B batch · T time · D width of the model · H heads · K key width of a head · V value width of a head
    activations [B, T, D]     per head [B, T, H, K] and [B, T, H, V]     matrix states [B, H, K, V]
A method's constructor arguments are its configuration (there is no second config class), and `issubclass` decides which
interface it has. The interface of a family comes with its first method; the contract of each stands in `instar.checks`.

Whatever changes a model in place returns an `instar.receipt.Receipt` (contract: `instar.checks.receipt`). What answers items
for the gate, be it model, endpoint or function, is an `instar.doors.version.Version`; it imports no torch and stands there.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from instar.items import Items
from instar.state import State

__all__ = ["Data", "Items", "Mixer", "Monitor", "Problem", "State", "Workload"]


class Mixer(nn.Module, abc.ABC):
    """A token mixer: the part of a block that moves information between positions.

    `Mixer(width, *, heads=…, **knobs)`. One call form for training, prefill, streaming and decoding.
    """

    width: int
    heads: int

    @abc.abstractmethod
    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mix `x` [B, T, D] and return the output [B, T, D] and the state after the last token.

        state: what an earlier call returned; None is `init_state(B)`. It is a value: it is never changed, and continuing
            from an older one gives what it gave before.
        mask: bool [B, T], True where the token is real. Others leave the state as it is and reach no real output; their own
            outputs are finite and mean nothing. Left, right and inner padding are all allowed.
        reset: bool [B, T], True where a new sequence starts (packed rows): the state is dropped before that token.
        T may be 0 or 1: one token is a call with T = 1. A whole sequence, any split of it, and token by token give the same
        outputs, state and gradients (a card's tag declares exceptions).
        """

    @abc.abstractmethod
    def reference(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The same function, written to be read beside the paper: the oracle of `forward`, values and gradients."""

    @abc.abstractmethod
    def init_state(self, batch: int) -> State:
        """The state before the first token, on the module's device: a tree of tensors, batch first."""


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

    def workloads(self) -> Iterable[Workload]:
        """What the exclusive timing pass measures."""
        return ()
