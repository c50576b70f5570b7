"""Attention whose gradient is exact, exact in blocks, or that of polynomial features: one autograd function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from instar.adapters.limits import gradients
from instar.adapters.limits.gradients import Kept
from instar.adapters.limits.polynomial import LARGEST_DEGREE, Features, Polynomial, chebyshev, smallest, taylor
from instar.errors import ShapeError

Mode = Literal["exact", "blockwise", "poly", "auto"]
SAFETY = 4.0
"""The polynomial's relative error is kept so much smaller than the error asked of the gradient."""


@dataclass(frozen=True)
class Choice:
    """How a gradient will be made, and why."""

    polynomial: Polynomial | None
    """None: exactly, in blocks."""
    reach: float
    """max ‖q_i‖ max ‖k_j‖ s: no score is larger."""
    degree: int | None
    """Of the least polynomial that keeps the error, whether or not it pays here; None where there is none."""
    rank: int
    """Its k_1; 0 for none."""
    cheaper: float
    """Multiplications of the exact gradient over those of the polynomial one, L / (k_1 (e + 1)) up to a factor; 0 for none."""
    why: str


def choose(
    q: Tensor, k: Tensor, v: Tensor, tolerance: float = 0.01, *, scale: float | None = None, largest: int = LARGEST_DEGREE
) -> Choice:
    """The least even degree whose gradient is within `tolerance` (relative), and whether it beats the exact one at this length.

    q [..., L, d], k [..., M, d], v [..., M, e]. The degree follows from the largest norms, not from the scores, which would cost
    as much as the gradient. Raises ShapeError.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    reach = float(q.detach().norm(dim=-1).max() * k.detach().norm(dim=-1).max()) * abs(scale)
    return choose_for(reach, q.shape[-1], v.shape[-1], k.shape[-2], tolerance, largest=largest)


def choose_for(reach: float, d: int, e: int, tokens: int, tolerance: float = 0.01, *, largest: int = LARGEST_DEGREE) -> Choice:
    """`choose` by sizes: widths d of queries and e of values, number of keys, largest possible score. Raises ShapeError."""
    if not math.isfinite(reach):
        raise ShapeError(f"The largest norms of queries and keys give scores up to {reach}: they are not finite.")
    found = smallest(reach, tolerance / SAFETY, largest)
    if found is None:
        return Choice(None, reach, None, 0, 0.0, f"scores up to ±{reach:.3g} need a degree above {min(largest, LARGEST_DEGREE)}")
    rank = found.rank(d)
    cheaper = tokens * (3 * d + 2 * e) / (rank * (e + 1) * 4 * d)
    if cheaper <= 1:
        why = f"degree {found.degree} has {rank} features, which do not pay at {tokens} tokens"
        return Choice(None, reach, found.degree, rank, cheaper, why)
    return Choice(
        found, reach, found.degree, rank, cheaper, f"degree {found.degree}, {rank} features for scores up to ±{reach:.3g}"
    )


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mode: Mode = "auto",
    *,
    degree: int | None = None,
    reach: float | None = None,
    tolerance: float = 0.01,
    scale: float | None = None,
    causal: bool = False,
    block: int = gradients.BLOCK,
) -> Tensor:
    """softmax(s Q Kᵀ) V with a gradient of one's choice; gradients of LoRA follow through the projections that made q, k and v.

    q [..., L, d], k [..., M, d], v [..., M, e] -> [..., L, e]; leading axes alike (sequences, heads).
    mode: `exact` (dense; the reference), `blockwise` (the same numbers in O(L · block) memory), `poly` (output and gradient by
        the polynomial of this `degree` for scores up to ±`reach`, by default the largest norms; Taylor's up to 1, Chebyshev's
        beyond), `auto` (poly where `choose` finds one within `tolerance` that is cheaper; otherwise exact, by torch's fused
        kernel where it has one for these widths, which works in blocks too, or blockwise).
    scale: s, 1/√d by default. The polynomial form computes in float64 inside: monomials of high degree need it.

    Time O(L M d) exactly, O((L + M) k_1 d e) by k_1 = binom(d + g, g) features; twice differentiable only in mode `exact`.
    Raises ShapeError; DivergedError where a row's weights do not add up to a positive number.
    Differs from the paper: any upstream gradient in the place of its squared loss, the scale 1/√d, causal rows, Chebyshev's
    polynomials beyond |score| = 1.
    """
    if mode not in ("exact", "blockwise", "poly", "auto"):
        raise ShapeError(f"mode must be exact, blockwise, poly or auto; received '{mode}'.")
    if (mode == "poly") != (degree is not None):
        raise ShapeError(f"A degree belongs to mode poly, which needs one; received mode {mode}, degree {degree}.")
    if q.shape[:-2] != k.shape[:-2] or k.shape[:-2] != v.shape[:-2]:
        raise ShapeError(f"q, k and v need equal leading axes; received {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}.")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rows = math.prod(q.shape[:-2])
    one, two, three = (t.reshape(rows, *t.shape[-2:]) for t in (q, k, v))
    gradients.require(one, two, three, causal)
    if mode == "exact":
        out = torch.softmax(gradients.hidden(scale * one @ two.mT, causal, 0), -1) @ three
        return out.view(*q.shape[:-1], v.shape[-1])
    polynomial = None
    if mode == "auto":
        polynomial = choose(one, two, three, tolerance, scale=scale).polynomial
        fused = None if polynomial is not None else _fused(one, two, three, scale, causal)
        if fused is not None:
            return fused.view(*q.shape[:-1], v.shape[-1])
    elif degree is not None:
        if reach is None:
            reach = choose(one, two, three, tolerance, scale=scale).reach
        polynomial = taylor(degree, reach) if reach <= 1 else chebyshev(degree, reach)
    out = _Attention.apply(one, two, three, polynomial, scale, causal, block)
    return out.view(*q.shape[:-1], v.shape[-1])


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor | None:
    """torch's attention that never holds a matrix of the length squared; None where it has none for these tensors."""
    if q.shape[-1] != v.shape[-1]:
        return None
    try:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
            one, two, three = (part.unsqueeze(1) for part in (q, k, v))
            return F.scaled_dot_product_attention(one, two, three, is_causal=causal, scale=scale).squeeze(1)
    except RuntimeError:
        return None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, polynomial: Polynomial | None, scale: float, causal: bool, block: int
    ) -> Tensor:
        ctx.polynomial, ctx.scale, ctx.causal, ctx.block = polynomial, scale, causal, block
        if polynomial is None:
            kept = gradients.blockwise_forward(q, k, v, scale, causal, block)
            ctx.save_for_backward(q, k, v, kept.out, kept.level)
            return kept.out
        wide, keys, values = (q * scale).double(), k.double(), v.double()
        kept = gradients.polynomial_forward(wide, keys, values, Features(polynomial, q.shape[-1]), causal, block)
        ctx.save_for_backward(wide, keys, values, kept.out, kept.level)
        ctx.dtype = q.dtype
        return kept.out.to(q.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, level = ctx.saved_tensors
        kept, polynomial = Kept(out, level), ctx.polynomial
        if polynomial is None:
            found = gradients.blockwise(q, k, v, g, kept, ctx.scale, ctx.causal, ctx.block)
            return (*found, None, None, None, None)
        dq, dk, dv = gradients.polynomial(q, k, v, g.double(), kept, Features(polynomial, q.shape[-1]), ctx.causal, ctx.block)
        return (*((t.to(ctx.dtype)) for t in (ctx.scale * dq, dk, dv)), None, None, None, None)
