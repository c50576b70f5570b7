r"""The gradient of one-head attention with respect to its queries, keys and values: whole, in blocks, and by polynomial features.

f = row-softmax(s Q Kᵀ), O = f V; for any upstream gradient G = ∂loss/∂O,

    q = G Vᵀ,  r_i = ⟨f_i, q_i⟩ = ⟨G_i, O_i⟩,  p = f ∘ (q - r 1ᵀ) = f ∘ ([G, -r] [V, 1]ᵀ)
    ∂Q = s p K,   ∂K = s pᵀ Q,   ∂V = fᵀ G.

Those of LoRA follow in O(L): for W_μ = W*_μ + (α/r) B_μ A_μ and Q = X W_Qᵀ, ∂W_Q = ∂Qᵀ X, ∂A = (α/r) Bᵀ ∂W, ∂B = (α/r) ∂W Aᵀ;
autograd makes these from ∂Q, ∂K, ∂V, and α/r stands in one place, the adapter. The paper's loss ½‖f C_3 - Y‖² is the case
G = f C_3 - Y.

Q, K [N, L, d], V and G [N, L, e]; N counts sequences and heads. Hu et al. 2024 (arXiv 2406.03136), lemmas 3.1 and 3.2 and
theorem 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from instar.adapters.limits.polynomial import Features
from instar.errors import DivergedError, ShapeError

BLOCK = 128
Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Kept:
    """What the forward pass leaves to the gradient."""

    out: Tensor
    """[N, L, e]"""
    level: Tensor
    """[N, L]: the log-sum-exp of each row's scores, or the row's sum of P where a polynomial stands for exp."""


def require(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> None:
    """Raises ShapeError for tensors that are no queries, keys and values of one head each."""
    fits = q.dim() == k.dim() == v.dim() == 3 and q.shape[::2] == k.shape[::2] and k.shape[:2] == v.shape[:2]
    if not fits or not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        shown = ", ".join(f"{name} {tuple(t.shape)} {str(t.dtype)[6:]}" for name, t in (("q", q), ("k", k), ("v", v)))
        raise ShapeError(f"Attention expects q [N, L, d], k [N, M, d], v [N, M, e] of one floating type; received {shown}.")
    if causal and q.shape[1] != k.shape[1]:
        raise ShapeError(f"Causal attention expects as many queries as keys; received {q.shape[1]} and {k.shape[1]}.")
    if not k.shape[1]:
        raise ShapeError("Attention expects at least one key; received none.")


def dense(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float, causal: bool) -> Gradients:
    """The formulas above, as they stand: the reference. O(L² d) time, O(L²) memory."""
    f = torch.softmax(hidden(scale * q @ k.mT, causal, 0), -1)
    products = f * (g @ v.mT)
    p = products - products.sum(-1, keepdim=True) * f
    return scale * p @ k, scale * p.mT @ q, f.mT @ g


def blockwise_forward(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, block: int = BLOCK) -> Kept:
    """O, with one block of rows of f at a time. O(L² d) time, O(L · block) memory."""
    out, level = [], []
    for rows, seen in _blocks(q.shape[1], k.shape[1], causal, block):
        scores = hidden(scale * q[:, rows] @ k[:, :seen].mT, causal, rows.start)
        level.append(torch.logsumexp(scores, -1))
        out.append(torch.exp(scores - level[-1].unsqueeze(-1)) @ v[:, :seen])
    return Kept(torch.cat(out, 1), torch.cat(level, 1))


def blockwise(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, kept: Kept, scale: float, causal: bool, block: int = BLOCK
) -> Gradients:
    """The exact gradient; of f, q and p only a block of rows exists at a time. O(L² d) time, O(L · block) memory."""
    r = (g * kept.out).sum(-1, keepdim=True)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows, seen in _blocks(q.shape[1], k.shape[1], causal, block):
        scores = hidden(scale * q[:, rows] @ k[:, :seen].mT, causal, rows.start)
        f = torch.exp(scores - kept.level[:, rows].unsqueeze(-1))
        p = f * (g[:, rows] @ v[:, :seen].mT - r[:, rows])
        dq[:, rows] = scale * p @ k[:, :seen]
        dk[:, :seen] += scale * p.mT @ q[:, rows]
        dv[:, :seen] += f.mT @ g[:, rows]
    return dq, dk, dv


def polynomial_forward(q: Tensor, k: Tensor, v: Tensor, features: Features, causal: bool, block: int = BLOCK) -> Kept:
    """O with P in the place of exp: D⁻¹ φ(Q) ψ(K)ᵀ V; the scale must be in Q. O(L k_1 e) time, O((block + e) k_1) memory.

    Raises DivergedError where a row's sum of P is not positive: P is then no stand-in for exp on these scores.
    """
    more = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    found = []
    past = q.new_zeros(q.shape[0], features.count, more.shape[-1])
    if not causal:
        for rows, _ in _blocks(k.shape[1], k.shape[1], False, block):
            past += features.keys(k[:, rows]).mT @ more[:, rows]
    for rows, _ in _blocks(q.shape[1], k.shape[1], causal, block):
        total = features.queries(q[:, rows]) @ past
        if causal:
            total += _within(features, q[:, rows], k[:, rows]) @ more[:, rows]
            past += features.keys(k[:, rows]).mT @ more[:, rows]
        found.append(total)
    total = torch.cat(found, 1)
    level = total[..., -1].clone()  # a view would keep all of `total` alive until the backward pass
    if not bool((level > 0).all()):
        raise DivergedError(
            f"A polynomial of degree {features.polynomial.degree} for scores up to ±{features.polynomial.reach:.3g} gives "
            f"weights whose sum is {float(level.min()):.3g} here: scores are larger than that, or the degree is odd or too low."
        )
    return Kept(total[..., :-1] / level.unsqueeze(-1), level)


def polynomial(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, kept: Kept, features: Features, causal: bool, block: int = BLOCK
) -> Gradients:
    """The chain of low-rank factors of theorem 3.1: f ≈ U_1 V_1ᵀ with U_1 = D⁻¹ φ(Q), V_1 = ψ(K); the scale must be in Q.

    p = (U_1 V_1ᵀ) ∘ ([G, -r] [V, 1]ᵀ) is a Hadamard product of two thin ones, whose row-wise Kronecker factors are never formed:
    one pass for each of the e + 1 columns. O(L k_1 d e) time; O(L k_1) memory, and k_1 d e where rows are causal.
    """
    u, w = features.queries(q) / kept.level.unsqueeze(-1), features.keys(k)
    left = torch.cat([g, -(g * kept.out).sum(-1, keepdim=True)], -1)
    right = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    if causal:
        return _causal(q, k, g, u, w, left, right, features, kept, block)
    dq, dk = torch.zeros_like(q), torch.zeros_like(k)
    for a, b in zip(left.split(1, -1), right.split(1, -1), strict=True):
        dq += (u * a) @ (w.mT @ (b * k))
        dk += (w * b) @ (u.mT @ (a * q))
    return dq, dk, w @ (u.mT @ g)


def _causal(
    q: Tensor,
    k: Tensor,
    g: Tensor,
    u: Tensor,
    w: Tensor,
    left: Tensor,
    right: Tensor,
    features: Features,
    kept: Kept,
    block: int,
) -> Gradients:
    """The same with sums over keys (for ∂Q) and queries (for ∂K, ∂V) cut at each row: blocks, and what is carried between."""
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(right[..., :-1])
    spans = [rows for rows, _ in _blocks(q.shape[1], k.shape[1], True, block)]
    past = q.new_zeros(q.shape[0], left.shape[-1], features.count, k.shape[-1])
    for rows in spans:
        f = _within(features, q[:, rows], k[:, rows]) / kept.level[:, rows].unsqueeze(-1)
        p = f * (left[:, rows] @ right[:, rows].mT)
        dq[:, rows] = p @ k[:, rows] + torch.einsum("nle,nlm,nemd->nld", left[:, rows], u[:, rows], past)
        dk[:, rows] = p.mT @ q[:, rows]
        dv[:, rows] = f.mT @ g[:, rows]
        past += torch.einsum("nle,nlm,nld->nemd", right[:, rows], w[:, rows], k[:, rows])
    ahead, seen = torch.zeros_like(past), g.new_zeros(g.shape[0], features.count, g.shape[-1])
    for rows in reversed(spans):
        dk[:, rows] += torch.einsum("nle,nlm,nemd->nld", right[:, rows], w[:, rows], ahead)
        dv[:, rows] += w[:, rows] @ seen
        ahead += torch.einsum("nle,nlm,nld->nemd", left[:, rows], u[:, rows], q[:, rows])
        seen += u[:, rows].mT @ g[:, rows]
    return dq, dk, dv


def _within(features: Features, q: Tensor, k: Tensor) -> Tensor:
    """P of the scores inside a block, zero above the diagonal."""
    return features.polynomial(q @ k.mT).tril()


def hidden(scores: Tensor, causal: bool, start: int) -> Tensor:
    """Scores of rows from `start` on, -inf where a key is later than its query."""
    if not causal:
        return scores
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(start + 1)
    return scores.masked_fill(later, -torch.inf)


def _blocks(queries: int, keys: int, causal: bool, block: int) -> Iterator[tuple[slice, int]]:
    """Rows, and how many keys they may see."""
    for start in range(0, queries, block):
        end = min(start + block, queries)
        yield slice(start, end), end if causal else keys
