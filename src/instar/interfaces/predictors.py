"""What finds an answer by steps, and what tells the future of series."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from instar.data.panel import Panel
from instar.interfaces.problem import Monitor


@dataclass(frozen=True)
class Trace:
    """What a prediction did on its way. A sample is whatever has an answer of its own: a row, or a position of a row."""

    steps: Tensor
    """int64 [B, …]: steps that each sample took; fewer than asked where it stopped by itself."""
    energies: Tensor | None = None
    """[S + 1, B, …]: energy of each sample before the first step and after every one; None for methods without an energy."""
    changes: Tensor | None = None
    """[S, B, …]: ‖z′ − z‖ / ‖z‖ of each step."""
    sampled: Tensor | None = None
    """[M, B, …]: last energies of all M samples among which one was chosen."""
    notes: tuple[str, ...] = ()
    """What a person should know: steps that were refused, energies that rose."""


class Predictor(nn.Module, abc.ABC):
    """Predicts by iterating: more steps is the dial between quick and careful.

    `Predictor(width=…, **sizes, **knobs)`; every argument has a default. What x and y are stands in the card's tag `reads`:
    tokens int64 [B, T] -> logits [B, T, V]; vectors [B, T, F] -> [B, T, O]; images [B, H, W] -> [B, H, W].
    """

    width: int
    steps: int
    """Steps that it is trained with, and what a plain call takes."""
    arguments: dict[str, Any]
    """What the constructor was given, by name: from which `instar.inference.saved` builds it again."""

    def __new__(cls, *args: Any, **given: Any) -> Self:
        made = super().__new__(cls)
        bound = inspect.signature(cls).bind_partial(*args, **given)
        made.__dict__["arguments"] = dict(bound.arguments)
        return made

    @abc.abstractmethod
    def predict(self, x: Tensor, *, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Trace]:
        """y after `steps` steps, and the trace of them. No graph is kept, also where the method takes gradients itself.

        steps: 0 is the first guess; any number is allowed, whatever the training used. generator: of everything that is drawn
        (the global one when None). Raises ShapeError for a negative number.
        """

    @abc.abstractmethod
    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """What training lowers, with a graph; draws from the global generator. Targets: int64 [B, T], −100 is not counted;
        vectors [B, T, O], NaN is not counted; images [B, H, W]."""

    @abc.abstractmethod
    def example(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """A small random x and a target of the kinds that it takes: for checks and costs."""

    def forward(self, x: Tensor) -> Tensor:
        """y after the steps of training."""
        return self.predict(x, steps=self.steps)[0]

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for AdamW: matrices decay, all else does not."""
        matrices = [p for p in self.parameters() if p.dim() >= 2]
        others = [p for p in self.parameters() if p.dim() < 2]
        both = [{"params": matrices, "lr": lr, "weight_decay": 0.01}, {"params": others, "lr": lr, "weight_decay": 0.0}]
        return [group for group in both if group["params"]]

    def save(self, folder: Path) -> None:
        """Write it to a folder; `instar.inference.saved.load` reads it."""
        from instar.inference import saved

        saved.save(self, folder)


class Forecaster(nn.Module, abc.ABC):
    """Learns from series how they go on.

    `Forecaster(horizon, *, context=…, **knobs)`; each argument is kept as an attribute of its name. Whoever has a table or an
    array calls `fit`, `predict` and `cross_validation`; beneath them stand `learn` and `forecast` on a `Panel`:
        T rows · N series · L context · H horizon · W origins (a forecast each) · Q quantiles
    An origin is the number of rows that are known; a forecast never reads a value at or after its origin.
    """

    horizon: int
    """H: a forecast is of so many steps."""
    context: int
    """L: the rows before an origin that a forecast is made of."""
    trained: ClassVar[bool] = True
    """Whether `learn` takes steps of an optimiser; otherwise it is a formula and ignores them."""
    covariates: bool = False
    """Whether it reads the panel's covariates; those that do not refuse panels that have any."""
    kept: Panel | None
    """The last rows of what was fitted: where `predict` starts."""
    errors: Tensor | None
    """[R, H, N], truth minus forecast at origins that taught nothing: what quantiles are made of."""
    frame: Callable[[dict[str, Any]], Any] | None
    """Makes a table of the kind that was fitted."""

    def __init__(self, horizon: int, context: int) -> None:
        super().__init__()
        self.horizon, self.context = horizon, context
        self.kept = self.errors = self.frame = None

    @property
    def reach(self) -> int:
        """Rows before an origin beyond which nothing is read: the context, unless it says otherwise."""
        return self.context

    def prepare(self, panel: Panel) -> None:
        """Make the parameters that depend on a panel's series and covariates, drawn from the global generator."""

    @abc.abstractmethod
    def learn(
        self,
        panel: Panel,
        *,
        steps: int | None = None,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Learn in place from all rows. The result is a function of panel, steps and seed; parameters that are there are kept.

        steps: of training; None takes what suits the number of windows. checkpoint: as of `Problem.fit`. Raises DataError for a
        panel without a whole window (L + H rows) or with covariates that it cannot read, DivergedError.
        """

    @abc.abstractmethod
    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        """What follows each origin, [W, H, N], in the units of the panel; finite whatever is missing.

        rows: origins that are computed at a time; the result does not depend on it. Raises DataError for origins outside the
        panel or future covariates that are not there, ShapeError before `learn` where something has to be learnt.
        """

    def fit(
        self,
        frame: Any,
        *,
        known: Sequence[str] = (),
        calibration: int = 0,
        steps: int | None = None,
        seed: int = 0,
        monitor: Monitor | None = None,
    ) -> Forecaster:
        """Learn from a long table (unique_id, ds, y, and covariates), or an array [T] or [T, N]; returns itself.

        frame: of pandas, polars, pyarrow, or a mapping of columns; rows in any order, y may be missing, series may begin and end
        at different times. known: covariates whose future is given to `predict`. calibration: so many of the last rows teach
        nothing but the errors that quantiles are made of. Raises DataError that says what is wrong with the table.
        """
        from instar.forecasting import framing

        return framing.fit(self, frame, known=known, calibration=calibration, steps=steps, seed=seed, monitor=monitor)

    def predict(self, h: int | None = None, frame: Any = None, *, future: Any = None, quantiles: Sequence[float] = ()) -> Any:
        """The next h steps of each series from its own end, in the kind of table that was given: unique_id, ds, and the forecast.

        h: at most `horizon`, which is the default. frame: a history to go on from; None is what was fitted. future: unique_id, ds
        and the covariates that were called known. quantiles: columns beside, from the errors on the calibration rows.
        """
        from instar.forecasting import framing

        return framing.predict(self, h, frame, future=future, quantiles=quantiles)

    def cross_validation(
        self,
        frame: Any,
        *,
        known: Sequence[str] | None = None,
        windows: int = 1,
        step: int | None = None,
        refit: bool = False,
    ) -> Any:
        """Forecasts from the last origins of a table, `step` rows apart (H by default), with cutoff and the truth beside them.

        known: covariates whose future is read from the table; None takes those that `fit` was told. refit: learn anew before
        each origin from what precedes it; otherwise once, from what precedes the first.
        """
        from instar.forecasting import framing

        return framing.cross_validation(self, frame, known=known, windows=windows, step=step, refit=refit)

    def save(self, folder: Path) -> None:
        """Write it to a folder, with what `predict` needs; `instar.forecasting.saved.load` reads it."""
        from instar.forecasting import saved

        saved.save(self, folder)
