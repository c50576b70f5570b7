"""What a run may spend: `90s`, `2m`, `1h`, `500steps` or `5Mtok`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from instar.errors import BudgetError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_SCALE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True)
class Budget:
    """The training budget of one run.

    Seconds become steps once, by calibration, so that identity, schedule and resume are in steps.
    """

    text: str
    kind: Literal["seconds", "steps", "tokens"]
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget. Raises BudgetError."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([smh])|(steps?)|([kMG]?)tok(?:ens)?)", text.strip())
        if not match:
            raise BudgetError(
                f"Cannot read the budget '{text}'. Write seconds (90s, 2m, 1h), steps (500steps) or tokens (5Mtok)."
            )
        number, unit, steps, scale = match.groups()
        amount = float(number) * (_SECONDS[unit] if unit else 1.0 if steps else _SCALE[scale])
        kind: Literal["seconds", "steps", "tokens"] = "seconds" if unit else "steps" if steps else "tokens"
        if amount <= 0 or (kind == "steps" and amount < 1):
            raise BudgetError(f"The budget '{text}' does not pay for one step.")
        return cls(text.strip(), kind, amount)

    def steps(self, step_seconds: float, tokens_per_step: int) -> int:
        """The steps that this budget pays for. Raises BudgetError when it pays for none."""
        cost = {"seconds": step_seconds, "steps": 1.0, "tokens": float(tokens_per_step)}[self.kind]
        steps = math.floor(self.amount / cost)
        if steps < 1:
            unit = "seconds" if self.kind == "seconds" else "tokens"
            raise BudgetError(f"The budget '{self.text}' does not pay for one step, which takes {cost:.3g} {unit}.")
        return steps

    def describe(self) -> str:
        """What the plan holds equal between methods."""
        return {
            "seconds": "equal training time (steps calibrated once for each method)",
            "steps": "equal steps",
            "tokens": "equal tokens",
        }[self.kind]
