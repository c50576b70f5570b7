"""AdamW."""

from __future__ import annotations

import torch
from torch import nn

from instar.optim.first_order import FirstOrder, decayed


class AdamW(FirstOrder, torch.optim.AdamW):
    """m / (√v + ε) with decoupled decay: torch.optim.AdamW in its `foreach` form, which does not depend on where tensors are cut.

    Args:
        model: whose parameters are trained. lr, beta1, beta2, eps: as there. weight_decay: of matrices.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        groups = decayed(model, weight_decay)
        torch.optim.AdamW.__init__(self, groups, lr=lr, betas=(beta1, beta2), eps=eps, foreach=True)
