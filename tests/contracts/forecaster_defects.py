"""A small correct forecaster, and one planted defect after another. What each must be caught by stands in the test beside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from instar.cards import Card, Cost, Knob
from instar.checks import Subject
from instar.data.panel import Panel
from instar.forecasting.neural import NeuralForecaster
from instar.interfaces import Forecaster


class Last(nn.Module):
    """A linear map of what a window does beside its last value."""

    def __init__(self, context: int, horizon: int) -> None:
        super().__init__()
        self.map = nn.Linear(context, horizon)

    def forward(self, x: Tensor) -> Tensor:
        return self.map((x - x[:, -1:]).mT).mT + x[:, -1:]


class Plain(NeuralForecaster):
    """Correct, and easy to spoil."""

    def __init__(self, horizon: int, *, context: int = 96, lr: float = 1e-3, batch: int = 8) -> None:
        super().__init__(horizon, context, lr=lr, batch=batch)

    def build(self, panel: Panel) -> nn.Module:
        return Last(self.context, self.horizon)


class Forgets(Plain):
    def __init__(self, horizon: int, *, context: int = 96, lr: float = 1e-3, batch: int = 8, share: float = 1.0) -> None:
        super().__init__(horizon, context=context, lr=lr, batch=batch)


class LooksAhead(Plain):
    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        found = super().forecast(panel, origins, rows=rows)
        for place, origin in enumerate(origins):
            if origin < len(panel):
                found[place] += 0.01 * np.nan_to_num(panel.values[origin])
        return found


class ReadsTheUnknown(Forecaster):
    """Takes from a covariate what nobody knows at the origin."""

    covariates, trained = True, False

    def __init__(self, horizon: int, *, context: int = 96) -> None:
        super().__init__(horizon, context)

    def learn(self, panel: Panel, **given: Any) -> None: ...

    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        return np.zeros((len(origins), self.horizon, len(panel.ids))) + panel.covariates[list(origins), -1][:, None, None]


class ScalesByAll(Plain):
    """The mean of all rows that are there, later ones among them."""

    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        return super().forecast(panel, origins, rows=rows) + 1e-3 * np.nan_to_num(panel.values).mean(0)


class DropsTheLast(Plain):
    """The last batch that is not full."""

    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        whole = len(origins) // rows * rows or len(origins)
        return super().forecast(panel, list(origins)[:whole], rows=rows)


class CouplesWindows(Plain):
    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        found = super().forecast(panel, origins, rows=rows)
        return found + 0.01 * rows if rows < len(origins) else found


class DrawsGlobally(Plain):
    def learn(self, panel: Panel, **given: Any) -> None:
        super().learn(panel, **given)
        with torch.no_grad():
            next(self.parameters()).add_(1e-3 * torch.randn(()))


class Untold(Plain):
    def learn(self, panel: Panel, *, monitor: Any = None, **given: Any) -> None:
        super().learn(panel, **given)


class KeepsGaps(Plain):
    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        found = super().forecast(panel, origins, rows=rows)
        for place, origin in enumerate(origins):
            found[place][:, np.isnan(panel.values[origin - 1])] = np.nan
        return found


class LosesBuffer(Plain):
    def prepare(self, panel: Panel) -> None:
        super().prepare(panel)
        self.level = float(panel.values[0, 0])

    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        return super().forecast(panel, origins, rows=rows) + self.level


class ChangesPanel(Plain):
    def learn(self, panel: Panel, **given: Any) -> None:
        panel.values[0] = 0.0
        super().learn(panel, **given)


class TakesAnything(Plain):
    def learn(self, panel: Panel, **given: Any) -> None:
        if len(panel) >= self.context + self.horizon:
            super().learn(panel, **given)


class KnowsNames(Plain):
    fixed_series = True


def subject(cls: type, *tags: str, state: str = "4 * (L + 1) * P", knobs: dict[str, Knob] | None = None) -> Subject:
    """The class under a card of this test's making."""
    card = Card(
        slug=cls.__name__.lower(),
        family="forecasting",
        title=cls.__name__,
        idea=cls.__name__,
        when_not="",
        kind="system",
        domains=[],
        tasks=[],
        path=Path(__file__),
        entry=f"{cls.__module__}:{cls.__qualname__}",
        interface="Forecaster",
        tags=list(tags),
        cost=Cost(flops="2 * N * L * P", state=state),
        knobs=knobs or {},
    )
    return Subject(cls, card)
