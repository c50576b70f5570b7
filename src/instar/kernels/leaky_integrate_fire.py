r"""Leaky integrate-and-fire neurons over a sequence: the recurrence by a function of its own, and token by token by autograd.

    u_t = v_{t-1} + (x_t - v_{t-1}) / τ,    s_t = 1[u_t ≥ θ],    v_t = (1 - s_t) u_t

Where the step has no slope, a surrogate stands in its backward pass: ∂s/∂u = α σ(α (u - θ)) (1 - σ(α (u - θ))). The reset reads s
without a gradient, as is usual (`detach_reset`).

Fang et al. 2021, "Incorporating Learnable Membrane Time Constant" (arXiv 2007.05785); surrogates: Neftci, Mostafa, Zenke 2019
(arXiv 1901.09948). Legend: B batch, T time, D neurons.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def leaky_integrate_fire(
    x: Tensor,
    v: Tensor,
    *,
    tau: float = 2.0,
    threshold: float = 1.0,
    alpha: float = 4.0,
    detach_reset: bool = True,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Spikes (0 or 1) [B, T, D] of the inputs x [B, T, D], none at padding, and the potentials [B, D] after the last token.

    Args:
        v: potentials before the first token, [B, D]. tau: τ ≥ 1, in tokens. threshold: θ. alpha: how steep the surrogate is.
        detach_reset: whether the reset of the potential is left out of the backward pass.
        mask, reset: bool [B, T] as for a mixer.

    O(T B D) in T dependent steps; one of them costs two operations forward and two backward, whatever its size.
    """
    if x.shape[1] == 0:
        return x, v
    keep, write = _rates(x, tau, mask, reset)
    drive = (x * write).transpose(0, 1).contiguous()
    keep = keep.transpose(0, 1).expand(-1, drive.shape[1], 1)
    real = None if mask is None else mask.unsqueeze(-1).transpose(0, 1).to(x.dtype)
    found: tuple[Tensor, Tensor] = _Neurons.apply(drive, v, keep, real, threshold, alpha, detach_reset)
    spikes = found[0].transpose(0, 1)
    return spikes if mask is None else spikes * mask.unsqueeze(-1), found[1]


def stepwise(
    x: Tensor,
    v: Tensor,
    *,
    tau: float = 2.0,
    threshold: float = 1.0,
    alpha: float = 4.0,
    detach_reset: bool = True,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The equations, token by token: the oracle of `leaky_integrate_fire`, whose arguments it takes."""
    spikes = [x[:, :0]]
    for t in range(x.shape[1]):
        if reset is not None:
            v = v.masked_fill(reset[:, t, None], 0.0)
        u = v + (x[:, t] - v) / tau
        s: Tensor = _Step.apply(u - threshold, alpha)
        after = (1 - (s.detach() if detach_reset else s)) * u
        if mask is not None:
            s, after = s * mask[:, t, None], torch.where(mask[:, t, None], after, v)
        v = after
        spikes.append(s.unsqueeze(1))
    return torch.cat(spikes, dim=1), v


def surrogate(y: Tensor, alpha: float) -> Tensor:
    """α σ(α y) (1 - σ(α y)): what stands for the slope of the step at y = u - θ."""
    rise = torch.sigmoid(alpha * y)
    return alpha * rise * (1 - rise)


def _rates(x: Tensor, tau: float, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """What is left of the potential at each token, [B or 1, T, 1], and what of the input is added."""
    keep = x.new_full((1, x.shape[1], 1), 1 - 1 / tau)
    write: Tensor | float = 1 / tau
    if mask is not None:
        real = mask.unsqueeze(-1).to(x.dtype)
        keep, write = 1 - real / tau, real / tau
    return keep if reset is None else keep * ~reset.unsqueeze(-1), write


class _Step(torch.autograd.Function):
    """1[y ≥ 0] with the surrogate's slope."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.alpha = alpha
        return (y >= 0).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return gradient * surrogate(y, ctx.alpha), None


class _Neurons(torch.autograd.Function):
    """drive [T, B, D], v [B, D], keep and real [T, B, 1] -> spikes [T, B, D], the last potentials [B, D].

    Only potentials are saved. Padding has no drive and keeps all.
    """

    @staticmethod
    def forward(
        ctx: Any,
        drive: Tensor,
        v: Tensor,
        keep: Tensor,
        real: Tensor | None,
        threshold: float,
        alpha: float,
        detach_reset: bool,
    ) -> tuple[Tensor, Tensor]:
        found = []
        for d, k in zip(drive.unbind(0), keep.unbind(0), strict=True):
            u = torch.addcmul(d, v, k)
            found.append(u)
            v = torch.where(u >= threshold, 0.0, u)
        u = torch.stack(found)
        ctx.save_for_backward(u, keep, real)
        ctx.threshold, ctx.alpha, ctx.detach_reset = threshold, alpha, detach_reset
        return (u >= threshold).to(u.dtype), v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_spikes: Tensor, of_v: Tensor) -> tuple[Tensor | None, ...]:
        u, keep, real = ctx.saved_tensors
        slope = surrogate(u - ctx.threshold, ctx.alpha)
        passed = (u < ctx.threshold).to(u.dtype)
        if not ctx.detach_reset:
            passed = passed - u * (slope if real is None else slope * real)
        direct = of_spikes * slope
        found = []
        for d, p, k in zip(direct.unbind(0)[::-1], passed.unbind(0)[::-1], keep.unbind(0)[::-1], strict=True):
            of_u = torch.addcmul(d, of_v, p)
            found.append(of_u)
            of_v = of_u * k
        return torch.stack(found[::-1]), of_v, None, None, None, None, None
