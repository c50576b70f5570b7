"""AdamW on slices, in the order of operations of torch's `foreach` form: the same bits wherever tensors are cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 18
"""Elements that are carried through all operations together: their four arrays stay in a processor's caches."""


def adamw(p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: int, group: dict[str, Any], workspace: Tensor) -> None:
    r"""One step of a slice, in place: m ← β₁ m + (1-β₁) g, v ← β₂ v + (1-β₂) g², θ ← (1-ηλ) θ - η m̂ / (√v̂ + ε).

    Args:
        p, g, m, v: [n], parameters, gradient and moments. step: of this update, from 1. group: lr, betas, eps, weight_decay.
        workspace: at least min(n, BLOCK) elements of their dtype, overwritten.

    Equal to the bit to `torch.optim.AdamW(foreach=True)` on the same build, threads and processor: every operation is element
    by element, and they are the same ones in the same order.
    """
    lr, eps, decay = float(group["lr"]), group["eps"], group["weight_decay"]
    beta1, beta2 = group["betas"]
    step_size = (lr / (1 - beta1 ** float(step))) * -1
    root = (1 - beta2 ** float(step)) ** 0.5
    for start in range(0, len(p), BLOCK):
        block = slice(start, start + BLOCK)
        theta, grad, first, second = p[block], g[block], m[block], v[block]
        if decay != 0:
            torch._foreach_mul_([theta], 1 - lr * decay)
        first.lerp_(grad, 1 - beta1)
        torch._foreach_mul_([second], beta2)  # in float16 it rounds the factor otherwise than `mul_` does
        second.addcmul_(grad, grad, value=1 - beta2)
        denominator = torch.sqrt(second, out=workspace[: len(theta)])
        denominator.div_(root).add_(eps)
        theta.addcdiv_(first, denominator, value=step_size)
