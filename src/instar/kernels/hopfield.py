"""The association of a continuous Hopfield network: states move towards the stored patterns that they resemble, then read.

Ramsauer, Schäfl, Lehner, Seidl, Widrich, …, Hochreiter 2020, "Hopfield Networks is All You Need" (arXiv 2008.02217).

    ξ ← Kᵀ softmax(β K ξ)  (an update; `steps` of them),   o = Vᵀ softmax(β K ξ)  (the association)

Shapes: states q [B, H, S, K], stored patterns `keys` [B, H, N, K], `values` [B, H, N, V]. beta: a number, or [H], one for each
head. steps: updates before the association, so that 0 is attention; negative means until the state has settled; a number for each
head in a tuple. eps: a state that an update moves by no more than this (Euclidean; never less than the arithmetic can tell) has
settled and is left alone, whatever the others do. attend, broadcast to [B, H, S, N]: bool, True where a state sees a pattern, or
float, added to the scores. A state that sees no pattern stays, and reads zeros.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import DivergedError, ShapeError

Beta = float | Tensor
Steps = int | tuple[int, ...]
Eps = float | tuple[float, ...]

LIMIT = 1000
"""Updates after which a state that is to settle has failed to: the energy always falls, but it may fall slowly."""


def associate(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    beta: Beta,
    steps: Steps = 0,
    eps: Eps = 1e-4,
    attend: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """o [B, H, S, V]: one SDPA an update and one for the association, which alone drops weights. O((n + 1) S N K) time.

    causal: state s sees the patterns up to the s-th. Raises DivergedError, ShapeError as `settle`.
    """
    state, _ = settle(q, keys, beta=beta, steps=steps, eps=eps, attend=attend, causal=causal)
    return _read(state, keys, values, head_scale(beta, q), attend, causal, dropout)


def settle(
    q: Tensor,
    keys: Tensor,
    *,
    beta: Beta,
    steps: Steps,
    eps: Eps = 1e-4,
    attend: Tensor | None = None,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """The states [B, H, S, K] after their updates, and how many each made, int64 [B, H, S].

    All states of a (sample, head) pair are updated together until the last of them has settled; pairs that have are dropped from
    the products. Gradients flow through every update. Raises DivergedError if a state has not settled after LIMIT updates, and
    ShapeError where it is to settle inside a compiled graph, which cannot stop early.
    """
    scale, seen = head_scale(beta, q), seeing(attend, q, keys.shape[2])

    def update(state: Tensor, live: Tensor | None) -> Tensor:
        if live is None:
            return _read(state, keys, keys, scale, attend, causal)
        return _read_some(state, keys, live, scale, attend, causal)

    return iterate(q, update, seen, steps=steps, eps=eps)


def iterate(
    q: Tensor, update: Callable[[Tensor, Tensor | None], Tensor], seen: Tensor, *, steps: Steps, eps: Eps
) -> tuple[Tensor, Tensor]:
    """The loop of `settle`: update(states, live) -> states, of the pairs of sample and head in `live` bool [B, H], or of all.

    seen: bool [B, H, S], the states that see a pattern at all.
    """
    H = q.shape[1]
    updates = torch.zeros_like(seen, dtype=torch.int64)
    allowed = (steps,) * H if isinstance(steps, int) else steps
    if not any(allowed) or not q.numel():
        return q, updates
    compiling, endless = torch.compiler.is_compiling(), min(allowed) < 0
    if compiling and endless:
        raise ShapeError("A compiled graph cannot update until states settle; give a number of steps.")
    most = LIMIT if endless else max(allowed)
    limits = torch.tensor([most if n < 0 else n for n in allowed], device=q.device).view(H, 1)
    moving = seen
    for n in range(most):
        moving = moving & (n < limits)
        live = None if compiling else moving.any(-1)
        if live is not None and not bool(live.any()):
            break
        found = update(q, None if live is None or bool(live.all()) else live)
        updates = updates + moving
        found = torch.where(moving.unsqueeze(-1), found.to(q.dtype), q)
        if n + 1 < most or endless:
            moving = moving & moved(q, found, eps)
        q = found
    if endless and bool(moving[:, [n < 0 for n in allowed]].any()):
        raise DivergedError(
            f"A state has not settled after {LIMIT} updates (moves by more than update_steps_eps = {eps}). "
            "Allow larger moves, or give a number of steps."
        )
    return q, updates


def moved(before: Tensor, after: Tensor, eps: Eps) -> Tensor:
    """bool [...]: whether the states [..., K] moved by more than eps (of each head) and more than rounding can."""
    with torch.no_grad():
        threshold = torch.tensor(eps, dtype=after.dtype, device=after.device)
        rounding = 8 * torch.finfo(after.dtype).eps * torch.linalg.vector_norm(after, dim=-1)
        return torch.linalg.vector_norm(after - before, dim=-1) > torch.maximum(threshold.unsqueeze(-1), rounding)


def settle_reference(
    q: Tensor, keys: Tensor, *, beta: Beta, steps: Steps, eps: Eps = 1e-4, attend: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`settle` with its weights written out, for each sample and head: the oracle, values and gradients."""
    B, H, S, _ = q.shape
    M = additive(attend, q).expand(B, H, S, keys.shape[2])
    states = [list(sample.unbind()) for sample in q.unbind()]
    updates = torch.zeros(B, H, S, dtype=torch.int64, device=q.device)
    for b, h in itertools.product(range(B), range(H)):
        X = keys[b, h]
        most, threshold = (part if isinstance(part, (int, float)) else part[h] for part in (steps, eps))
        beta_h = beta[h] if isinstance(beta, Tensor) else beta
        blind = M[b, h].isneginf().all(-1, keepdim=True)
        moving, n = ~blind, 0
        while n != most and bool(moving.any()):
            old = states[b][h]
            p = torch.softmax(beta_h * old @ X.T + M[b, h].masked_fill(blind, 0.0), dim=-1)
            states[b][h] = torch.where(moving, p @ X, old)
            updates[b, h] += moving.squeeze(-1)
            moving, n = moving & moved(old, states[b][h], float(threshold)).unsqueeze(-1), n + 1
    return torch.stack([torch.stack(heads) for heads in states]) if states else q, updates


def weights(state: Tensor, keys: Tensor, *, beta: Beta, attend: Tensor | None = None) -> Tensor:
    """softmax(β ξ Kᵀ) [B, H, S, N], in float32 or better: what states read with. Zeros for a state that sees no pattern."""
    M = additive(attend, state)
    blind = M.isneginf().all(-1, keepdim=True)
    scores = (state * head_scale(beta, state)) @ keys.mT
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + M.masked_fill(blind, 0.0)
    return torch.softmax(scores, dim=-1).masked_fill(blind, 0.0)


def additive(attend: Tensor | None, like: Tensor) -> Tensor:
    """A mask to be added to scores: 0 where nothing is said, −∞ where a boolean one says no."""
    if attend is None:
        return like.new_zeros(1, 1, 1, 1)
    return like.new_zeros(attend.shape).masked_fill(~attend, -torch.inf) if attend.dtype == torch.bool else attend


def head_scale(beta: Beta, q: Tensor) -> Beta:
    """A number as it is; one for each head [H, 1, 1]."""
    return beta.to(q.dtype).view(-1, 1, 1) if isinstance(beta, Tensor) else beta


def seeing(attend: Tensor | None, q: Tensor, patterns: int) -> Tensor:
    """bool [B, H, S]: the states that see a pattern at all, of so many."""
    if attend is None:
        return torch.full(q.shape[:3], patterns > 0, dtype=torch.bool, device=q.device)
    seen = attend if attend.dtype == torch.bool else attend > -torch.inf
    return seen.any(-1).expand(q.shape[:3])


def _read(
    q: Tensor, keys: Tensor, values: Tensor, scale: Beta, attend: Tensor | None, causal: bool, dropout: float = 0.0
) -> Tensor:
    if isinstance(scale, Tensor):
        q, scale = q * scale, 1.0
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=attend, dropout_p=dropout, is_causal=causal, scale=scale)


def _read_some(q: Tensor, keys: Tensor, live: Tensor, scale: Beta, attend: Tensor | None, causal: bool) -> Tensor:
    """An update of the pairs of sample and head in `live`, bool [B, H], alone."""
    b, h = live.nonzero(as_tuple=True)
    if attend is not None:
        attend = attend.expand(*q.shape[:3], keys.shape[2])[b, h].unsqueeze(0)
    if isinstance(scale, Tensor):
        scale = scale[h]
    some = keys[b, h].unsqueeze(0)
    return q.index_put((b, h), _read(q[b, h].unsqueeze(0), some, some, scale, attend, causal)[0].to(q.dtype))
