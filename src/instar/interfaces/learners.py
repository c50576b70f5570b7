"""What learns from examples, and how it is trained."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass
from instar.interfaces.problem import Monitor


class InContextLearner(abc.ABC):
    """Answers queries from labelled examples that it is shown; its weights, if it has any, stay as they are while it does.

    B tasks · N examples · D width of an input · Q queries. Labels are numbers; of two classes they are −1 and 1, and the sign of
    a prediction is the class. A constructor may ask for `width` (D), `examples` (the most of a context), and `noise` and `prior`
    (standard deviations of labels' noise and of weights): a problem gives those that it names.
    """

    @abc.abstractmethod
    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """xs [B, N, D], ys [B, N], x_query [B, Q, D] -> labels of the queries [B, Q], each answered alone. N may be 0.

        Raises ShapeError for shapes that do not fit, or more examples than it can take.
        """

    def prefixes(self, xs: Tensor, ys: Tensor) -> Tensor:
        """xs [B, N, D], ys [B, N] -> [B, N]: what is said of y_i after the i − 1 pairs before it."""
        found = [self.predict(xs[:, :i], ys[:, :i], xs[:, i : i + 1]) for i in range(xs.shape[1])]
        return torch.cat(found, 1) if found else ys.new_zeros(ys.shape)

    def fit(  # noqa: B027 - closed forms have nothing to learn
        self,
        tasks: Callable[[int], tuple[Tensor, Tensor]],
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Learn to learn, in place. tasks: of a step, xs [B, N, D] and ys [B, N]. loss: of predictions [B, N] and labels.

        Learners without weights do nothing.
        """


@dataclass(frozen=True)
class Examples:
    """Sequences of tokens with what shall be said of them."""

    tokens: Sequence[Sequence[str]]
    labels: Sequence[Sequence[str | None]]
    """As long as the tokens, None where nothing is asked; or one label for a whole sequence, in a list of one (`pooled`)."""
    pooled: bool = False
    """Whether a sequence has one label, in place of one for each token."""
    causal: bool = False
    """Whether the label of a token may depend only on that token and those before it."""

    def __len__(self) -> int:
        return len(self.tokens)


class Labeller(abc.ABC):
    """Learns to label the tokens of sequences, or whole sequences. Constructor arguments are the configuration.

    Each argument is kept as an attribute of its name.
    """

    @abc.abstractmethod
    def fit(
        self,
        train: Examples,
        valid: Examples,
        *,
        steps: int,
        batch: int,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Learn for `steps` steps of `batch` sequences in all; choices are made by `valid`.

        The result is a function of data, steps, batch and seed alone. With `checkpoint`, progress is kept there and taken
        up again to the bit. Raises DataError for data that it cannot take, ShapeError, DivergedError.
        """

    @abc.abstractmethod
    def predict(self, sequences: Sequence[Sequence[str]]) -> list[list[str]]:
        """A label for each token (one in all where it learnt from pooled examples); each sequence by itself.

        Raises DataError for a token that it does not know, an empty sequence, or one that is too long, and before `fit`.
        """

    @abc.abstractmethod
    def parameters(self) -> int:
        """Numbers that it learnt. 0 before `fit`."""


class Optimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer`: parameter groups, closures, schedulers, and a state that resumes to the bit.

    `Optimizer(model, *, lr=…, **knobs)`: some need its layers, the others take its parameters. A step whose gradients are not all
    finite changes nothing.
    """

    keeps: str = ""
    """What it keeps about its parameters beside groups and state, in words: those that it has cannot be replaced, nor joined by
    others, behind its back. Empty where there is nothing, and then a growth takes the optimiser along."""

    def observe(self, loss: float) -> None:
        """Be told the loss of the step that was made, where it was not given by a closure."""

    @abc.abstractmethod
    def state_bytes(self) -> int:
        """Bytes that it keeps between steps, as they are now."""
