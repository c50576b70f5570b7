"""The inverse of a Kronecker factor, kept by rank-one updates: O(d²) where an inversion is O(d³).

Mozaffari, Li, Zhang, Mehri Dehnavi 2023, "MKOR" (arXiv 2306.01685).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from instar.errors import ShapeError

Rule = Literal["released", "exact", "paper"]
RULES: tuple[Rule, ...] = get_args(Rule)


def updated(inverse: Tensor, v: Tensor, rule: Rule, gamma: float) -> Tensor:
    r"""P' after the vector v, with u = P v and q = ⟨v, u⟩.

    released: Q = γ P + (1-γ) I, then Q - (Q v)(Q v)ᵀ / (1 + ⟨v, Q v⟩): the inverse of Q⁻¹ + v vᵀ. Eigenvalues stay in (0, 1].
    exact: [P - (1-γ) / (γ + (1-γ) q) · u uᵀ] / γ, the inverse of γ P⁻¹ + (1-γ) v vᵀ; it grows by 1/γ off the span of v.
    paper: γ P + (1-γ) / (γ² (1 + γ (1-γ) q)) · u uᵀ, as printed (eqs 5, 6), which is no such inverse and grows along v.

    Args:
        inverse: P [d, d], symmetric, float32 or float64. v: [d]. rule: see above. gamma: γ in (0, 1).

    Returns a new tensor, symmetric to the bit. O(d²): one product and one pass.
    """
    u = inverse @ v
    if rule == "released":
        u = gamma * u + (1 - gamma) * v
        found = _plus(inverse, u, gamma, -1.0 / (1.0 + float(v @ u)))
        found.diagonal().add_(1 - gamma)
        return found
    q = float(v @ u)
    if rule == "exact":
        return _plus(inverse, u, 1 / gamma, -(1 - gamma) / (gamma * (gamma + (1 - gamma) * q)))
    if rule == "paper":
        return _plus(inverse, u, gamma, (1 - gamma) / (gamma**2 * (1 + gamma * (1 - gamma) * q)))
    raise ShapeError(f"rule must be one of {', '.join(RULES)}; received '{rule}'.")


def _plus(inverse: Tensor, u: Tensor, scale: float, by: float) -> Tensor:
    """scale · P + by · u uᵀ; the factor goes half into each u, since (c u_i) u_j and (c u_j) u_i round differently."""
    half = u * abs(by) ** 0.5
    return torch.addr(inverse, half, half, beta=scale, alpha=1.0 if by > 0 else -1.0)


def stabilised(inverse: Tensor, largest: float, zeta: float) -> Tensor | None:
    """ζ P + (1-ζ) I where an entry of P is larger than `largest`; None where none is. ζ = 0 starts again from I."""
    if float(torch.linalg.vector_norm(inverse, float("inf"))) <= largest:
        return None
    found = inverse * zeta
    found.diagonal().add_(1 - zeta)
    return found
