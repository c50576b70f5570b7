"""MKOR-H: MKOR that goes on with its first-order optimiser alone once second-order steps stop paying."""

from __future__ import annotations

from typing import Any

from torch import nn

from instar.optim.hybrid import HybridPolicy
from instar.optim.mkor import MKOR, Inner, Named


class MKORH(MKOR):
    """MKOR with a `HybridPolicy` of these arguments.

    Args:
        model, inner, lr: as of `MKOR`, and so are all others. window, tau, patience, min_steps: of the rule. switch_at: a step at
            which to switch instead; 0 asks the rule.
    """

    def __init__(
        self,
        model: nn.Module,
        inner: Inner | Named = "sgd",
        *,
        lr: float = 0.01,
        f: int = 10,
        window: int = 100,
        tau: float = 0.1,
        patience: int = 2,
        min_steps: int = 0,
        switch_at: int = 0,
        **others: Any,
    ) -> None:
        policy = HybridPolicy(window=window, tau=tau, patience=patience, min_steps=min_steps, switch_at=switch_at or None)
        super().__init__(model, inner, lr=lr, f=f, hybrid=policy, **others)
