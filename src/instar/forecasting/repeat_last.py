"""The last value again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from instar.data.panel import Panel
from instar.errors import ShapeError
from instar.forecasting import windows
from instar.interfaces import Forecaster, Monitor


class Formula(Forecaster):
    """What forecasters share that learn nothing: the monitor hears of every step, so that budgets mean the same for all."""

    trained: ClassVar[bool] = False

    def __init__(self, horizon: int, context: int) -> None:
        if min(horizon, context) < 1:
            raise ShapeError(f"A forecaster expects a horizon and a context of at least 1; received {horizon} and {context}.")
        super().__init__(horizon, context)

    def learn(
        self,
        panel: Panel,
        *,
        steps: int | None = None,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Nothing is learnt."""


class RepeatLast(Formula):
    r"""ŷ_{t+h} = y_t, the last value that is known in the context; the random walk's forecast.

    Args:
        horizon: H. context: L, how far back a last value is looked for.

    Linear in W·(L + H)·N, no parameters. Raises ShapeError.
    """

    def __init__(self, horizon: int, *, context: int = 96) -> None:
        super().__init__(horizon, context)

    def forecast(self, panel: Panel, origins: Sequence[int], *, rows: int = 256) -> NDArray[np.float64]:
        found = windows.checked(panel, origins)
        last = windows.filled(windows.before(panel.values, found, self.context))[:, -1:]
        return last.expand(-1, self.horizon, -1).numpy().copy()
