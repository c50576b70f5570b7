"""Positive random features: products of them estimate the softmax kernel without bias (FAVOR+).

Choromanski et al. 2020, "Rethinking Attention with Performers" (arXiv 2009.14794).
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4
"""Added to every feature that has been divided by the largest, as in the authors' code: no sum of them is zero."""
RELU_EPSILON = 1e-3


def orthogonal_gaussian(rows: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """w [rows, width]: each row is N(0, I), rows are orthogonal in blocks of `width`; their lengths are drawn anew (χ)."""
    blocks = []
    for first in range(0, rows, width):
        q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
        blocks.append((q * r.diag().sign()).mT[: rows - first])  # without the signs some directions are never drawn: a bias
    lengths = torch.randn(rows, width, generator=generator, dtype=torch.float64).norm(dim=1, keepdim=True)
    return (torch.cat(blocks) * lengths).to(torch.get_default_dtype())


def exponents(x: Tensor, w: Tensor) -> Tensor:
    """a_r = w_r·x' − |x'|² / 2 with x' = x K^(−1/4), [..., K] -> [..., m]: E_w[e^{a(q)} e^{a(k)}] = e^{q·k / √K}."""
    x = x * x.shape[-1] ** -0.25
    return x @ w.mT - x.square().sum(-1, keepdim=True) / 2


def softmax_features(a: Tensor, top: Tensor) -> Tensor:
    """φ = m^(−1/2) (e^{a − top} + ε): exponents [..., m], and the largest that they are measured from [..., 1]."""
    return a.shape[-1] ** -0.5 * ((a - top).exp() + EPSILON)


def elu_features(x: Tensor, w: Tensor) -> Tensor:
    """φ_r(x) = m^(−1/2) (1 + elu(w_r·x')), of which no product estimates a softmax: x [..., K], w [m, K] -> [..., m]."""
    h = (x * x.shape[-1] ** -0.25) @ w.mT
    return torch.where(h > 0, h + 1, h.clamp(max=0).exp()) * w.shape[0] ** -0.5


def relu_features(x: Tensor, w: Tensor) -> Tensor:
    """φ = m^(−1/2) (max(0, w_r·x') + ε), which estimates another kernel (the authors' generalised attention)."""
    return w.shape[0] ** -0.5 * ((x * x.shape[-1] ** -0.25 @ w.mT).relu() + RELU_EPSILON)


def running_maximum(a: Tensor, before: Tensor, reset: Tensor | None) -> Tensor:
    """max of `before` [B, H] and a_1 … a_t, for every t of a [B, T, H]; from a reset on, of what comes from there on."""
    if reset is None:
        return torch.cat([before.unsqueeze(1), a], dim=1).cummax(1).values[:, 1:]
    a = torch.cat([before.unsqueeze(1), a], dim=1)
    fresh = torch.cat([torch.zeros_like(reset[:, :1]), reset], dim=1).unsqueeze(2)
    reach = 1
    while reach < a.shape[1]:  # a parallel scan: after each turn an element knows twice as many before it
        earlier = a[:, :-reach].masked_fill(fresh[:, reach:], -torch.inf)
        a = torch.cat([a[:, :reach], torch.maximum(a[:, reach:], earlier)], dim=1)
        fresh = torch.cat([fresh[:, :reach], fresh[:, reach:] | fresh[:, :-reach]], dim=1)
        reach *= 2
    return a[:, 1:]
