"""Stochastic gradient descent with momentum."""

from __future__ import annotations

import torch
from torch import nn

from instar.optim.first_order import FirstOrder, decayed


class SGD(FirstOrder, torch.optim.SGD):
    """v ← μ v + g, θ ← θ - η v: torch.optim.SGD.

    Args:
        model: whose parameters are trained. lr: η. momentum: μ. weight_decay: of matrices.
    """

    def __init__(self, model: nn.Module, *, lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        torch.optim.SGD.__init__(self, decayed(model, weight_decay), lr=lr, momentum=momentum)

    @property
    def sparse(self) -> bool:
        """torch has such a step, but none that decays weights."""
        return not any(group["weight_decay"] for group in self.param_groups)
