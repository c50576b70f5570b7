"""GELU(τ a / (‖a‖ + eps)) with a backward pass of its own: half the memory, and fewer passes over [T, n] than one a formula."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Parts = tuple[Tensor, ...]


def norm_gelu(scores: list[Tensor], tau: Tensor, eps: float) -> list[Tensor]:
    """Of scores [..., n_g] in parts that have one norm, the same in parts. tau: τ, without gradient."""
    return list(_NormGelu.apply(tau, eps, *scores))


def factor_of(parts: Parts, tau: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """τ / (‖a‖₂ + eps) over all parts and the norm, both [..., 1], in float32 at least.

    The norm of a part is taken first, then that of the norms: a later part of zeros changes no bit.
    """
    dtype = torch.promote_types(parts[0].dtype, torch.float32)
    norms = [torch.linalg.vector_norm(part, dim=-1, keepdim=True, dtype=dtype) for part in parts]
    norm = torch.linalg.vector_norm(torch.cat(norms, -1), dim=-1, keepdim=True)
    return tau.to(dtype) / (norm + eps), norm


def plain(scores: Parts, tau: Tensor, eps: float) -> list[Tensor]:
    """The same by formulas that autograd knows."""
    factor = factor_of(scores, tau, eps)[0].to(scores[0].dtype)
    return [F.gelu(part * factor) for part in scores]


class _NormGelu(torch.autograd.Function):
    """With f = τ / (‖a‖ + eps), z = f a, δ = GELU'(z) ds: da = f δ − f ⟨δ, a⟩ / (‖a‖ (‖a‖ + eps)) a, and f δ where a = 0."""

    @staticmethod
    def forward(ctx: Any, tau: Tensor, eps: float, *scores: Tensor) -> Parts:
        factor, norm = factor_of(scores, tau, eps)
        ctx.eps = eps
        ctx.save_for_backward(tau, factor, norm, *scores)
        own = factor.to(scores[0].dtype)
        return tuple(F.gelu(part * own) for part in scores)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        tau, factor, norm, *scores = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            wanted = [part for part in scores if part.requires_grad]
            found = iter(torch.autograd.grad(plain(tuple(scores), tau, ctx.eps), wanted, given, create_graph=True))
            return (None, None, *(next(found) if part.requires_grad else None for part in scores))
        own = factor.to(scores[0].dtype)
        inner, deltas = torch.zeros_like(norm), []
        for part, ds in zip(scores, given, strict=True):
            z = part * own
            delta = torch.ops.aten.gelu_backward(ds, z)
            inner += torch.mul(delta, part, out=z).sum(-1, keepdim=True, dtype=norm.dtype)
            deltas.append(delta)
        pull = torch.where(norm == 0, 0, -factor * inner / (norm * (norm + ctx.eps))).to(own.dtype)
        return (None, None, *(delta.mul_(own).addcmul_(part, pull) for delta, part in zip(deltas, scores, strict=True)))
