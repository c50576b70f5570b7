"""A memory that learns, token by token, its gradients by autograd: the oracle of `omega_rule`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instar.kernels.memory_network import Layer, MemoryNetwork
from instar.kernels.newton_schulz import newton_schulz
from instar.kernels.omega_rule import MemoryState, OmegaRule
from instar.state import State, tree_map


def recurrent(
    rule: OmegaRule,
    initial: list[Tensor],
    features: Callable[[Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_alpha: Tensor,
    log_theta: Tensor | None,
    eta: Tensor,
    gamma: Tensor | None,
    *,
    state: MemoryState | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, MemoryState]:
    """`OmegaRule.__call__`, as the papers write it: arguments and results are its own."""
    new = rule.start(initial, q.shape[0], k.shape[-1], v.shape[-1])
    now, outputs = new if state is None else state, [v[:, :0]]
    weight = torch.ones_like(eta).unsqueeze(-1) if gamma is None else gamma
    for t in range(q.shape[1]):
        now = now if reset is None else choose(reset[:, t], new, now)
        A, W, S, keys, values, pending, seen = now
        keys, values = torch.cat([keys, k[:, t : t + 1]], 1), torch.cat([values, v[:, t : t + 1]], 1)  # the last c, oldest first
        there = torch.arange(1 - rule.window, 1, device=q.device) + seen.unsqueeze(1) >= 0
        g = _gradient(rule.network, A, features, keys, values, weight[:, t].flip(-1) * there.unsqueeze(1))
        alpha, theta = log_alpha[:, t].exp(), None if log_theta is None else log_theta[:, t].exp()
        whole = (seen + 1) % rule.chunk == 0
        if theta is not None and rule.newton_schulz:
            S = [_scaled(theta, s) + x for s, x in zip(S, g, strict=True)]
            owed = alpha * pending + eta[:, t] if rule.lagged else eta[:, t]
            due = owed * whole.unsqueeze(1) if rule.lagged else owed
            D = S if not bool(due.any()) else [newton_schulz(s, rule.newton_schulz) if s.dim() == 4 else s for s in S]
            W = [_scaled(alpha, w) - _scaled(due, d) for w, d in zip(W, D, strict=True)]
            pending = owed - due if rule.lagged else pending
        else:
            step = [_scaled(eta[:, t], x) for x in g]
            if theta is not None:
                S = step = [_scaled(theta, s) + x for s, x in zip(S, step, strict=True)]
            W = [_scaled(alpha, w) - x for w, x in zip(W, step, strict=True)]
        A = choose(whole, W, A)
        outputs.append(rule.network.answer(_layer(A if rule.lagged else W), q[:, t], features(q[:, t])).unsqueeze(1))
        after = MemoryState(A, W, S, keys[:, 1:], values[:, 1:], pending, seen + 1)
        now = after if mask is None else choose(mask[:, t], after, now)
    return torch.cat(outputs, 1), now


def choose(rows: Tensor, one: State, other: State) -> Any:
    """`one` in the chosen rows, bool [B], `other` elsewhere."""
    return tree_map(lambda a, b: torch.where(rows.view(-1, *[1] * (a.dim() - 1)), a, b), one, other)


def _gradient(
    network: MemoryNetwork, weights: list[Tensor], features: Callable[[Tensor], Tensor], k: Tensor, v: Tensor, weight: Tensor
) -> list[Tensor]:
    """Σ_j γ_j ∇ loss(k_j, v_j) for weights [B, H, ...], k and v [B, c, H, ·], γ [B, H, c]."""

    def loss(W: list[Tensor], z: Tensor, phi: Tensor, v: Tensor) -> Tensor:
        answer = network.answer(_layer(W), z, phi)
        return -(answer * v).sum() if network.hebbian else 0.5 * (answer - v).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0, 0))  # over the window, then heads, then rows
    found = torch.func.vmap(torch.func.vmap(each, (0, 1, 1, 1)))(weights, k, features(k), v)
    if network.largest:
        found = [_bounded(g, network.largest) if g.dim() == 5 else g for g in found]
    return [torch.einsum("bhc,bhc...->bh...", weight, g) for g in found]


def _bounded(g: Tensor, largest: float) -> Tensor:
    return g * torch.rsqrt(1 + g.square().sum((-2, -1), keepdim=True) / largest**2)


def _layer(W: list[Tensor]) -> Layer:
    """A matrix times a vector, or a gain."""
    return lambda i, x: (W[i] @ x.unsqueeze(-1)).squeeze(-1) if W[i].dim() > x.dim() else W[i] * x


def _scaled(factor: Tensor, w: Tensor) -> Tensor:
    """[B, H] times [B, H, ...]."""
    return factor.view(*factor.shape, *[1] * (w.dim() - 2)) * w
