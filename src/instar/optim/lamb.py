"""LAMB: Adam whose step in each tensor is as long as the tensor says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from instar.errors import ShapeError
from instar.optim.first_order import Whole, decayed, tensor_bytes


class LAMB(Whole):
    r"""θ ← θ - η · min(‖θ‖, 10) / ‖r‖ · r, r = m / (√v + ε) + λ θ.

    You et al. 2020, "Large Batch Optimization for Deep Learning" (arXiv 1904.00962), without the correction of m and v for their
    start, as in the code that MKOR was measured with. A norm of 0 makes the ratio 1.

    Args:
        model: whose parameters are trained. lr: η. beta1, beta2, eps: of m and v. weight_decay: λ, of matrices.

    State: two numbers a parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-2,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        if not (lr >= 0 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and eps > 0 and weight_decay >= 0):
            raise ShapeError(
                "LAMB expects lr and weight_decay of 0 or more, 0 ≤ beta < 1 and eps > 0; received "
                f"{lr}, {weight_decay}, {beta1}, {beta2}, {eps}."
            )
        defaults = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay}
        super().__init__(decayed(model, weight_decay), defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; nothing changes where a gradient is not finite. With a closure, the loss is its value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.ready():
            return loss
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                entry = self.state[p]
                if not entry:
                    entry["exp_avg"], entry["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                entry["exp_avg"].lerp_(p.grad, 1 - beta1)
                entry["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                update = entry["exp_avg"] / (entry["exp_avg_sq"].sqrt() + group["eps"]) + group["weight_decay"] * p
                size, length = float(p.norm().clamp(max=10.0)), float(update.norm())
                p.add_(update, alpha=-group["lr"] * (size / length if size > 0 and length > 0 else 1.0))
        return loss

    def state_bytes(self) -> int:
        return tensor_bytes(self.state.values())
