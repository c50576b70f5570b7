"""When second-order steps stop paying: MKOR-H's switch to its first-order optimiser, which the paper only names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from instar.errors import CheckpointError, ShapeError


@dataclass
class HybridPolicy:
    r"""Switch for good when the loss falls too slowly: ρ_t < τ · max_{s ≤ t} ρ_s in `patience` windows after one another.

    ρ_t = (ema_{t-W} - ema_t) / (W · |ema_{t-W}|), the rate at which an exponential mean of the loss falls over W steps.

    Args:
        beta: of the mean. window: W. tau: τ. patience: windows. min_steps: no switch before. switch_at: a step at which to switch
        whatever the loss does, as in the paper's runs; the rule is not asked then.

    Raises ShapeError. Differs from the paper: it says "a switch based on the loss decrease rate" and publishes no rule.
    """

    beta: float = 0.98
    window: int = 100
    tau: float = 0.1
    patience: int = 2
    min_steps: int = 0
    switch_at: int | None = None
    _mean: float | None = field(default=None, repr=False)
    _before: float | None = field(default=None, repr=False)
    _best: float = field(default=0.0, repr=False)
    _slow: int = field(default=0, repr=False)
    _seen: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if not (0 <= self.beta < 1 and self.window > 0 and 0 < self.tau < 1 and self.patience > 0 and self.min_steps >= 0):
            raise ShapeError(f"HybridPolicy expects 0 ≤ beta < 1, window and patience > 0, 0 < tau < 1; received {self}.")

    def observe(self, loss: float) -> bool:
        """Take the loss of a step; whether it is time to switch."""
        self._seen += 1
        self._mean = loss if self._mean is None else self.beta * self._mean + (1 - self.beta) * loss
        if self.switch_at is not None:
            return self._seen >= self.switch_at
        if self._seen % self.window:
            return False
        before, self._before = self._before, self._mean
        if before is None or before == 0:
            return False
        rate = (before - self._mean) / (self.window * abs(before))
        self._best = max(self._best, rate)
        self._slow = self._slow + 1 if rate < self.tau * self._best else 0
        return self._slow >= self.patience and self._seen > self.min_steps

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError for the state of another policy."""
        known = asdict(self)
        if state.keys() != known.keys() or any(state[k] != known[k] for k in known if not k.startswith("_")):
            raise CheckpointError(f"The state of another switch: {state}; this one is {self}.")
        for key, value in state.items():
            setattr(self, key, value)
