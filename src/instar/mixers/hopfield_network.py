"""The continuous Hopfield network itself: energy, retrieval, fixed points, and what theory says about them.

Ramsauer et al. 2020, "Hopfield Networks is All You Need" (arXiv 2008.02217).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from scipy.special import wrightomega
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.kernels.hopfield import settle

Regime = Literal["average", "large cluster", "small cluster", "pattern"]
"""What a softmax over N patterns amounts to, by how many entries k make up 0.9 of it: k > N/2, > N/8, > N/32, or less."""


class FixedPoints(NamedTuple):
    """Where the stored patterns flow to."""

    points: Tensor
    """[P, d], each once."""
    basin: Tensor
    """int64 [N]: the point that each stored pattern flows to."""
    entries: Tensor
    """int64 [P]: how many patterns make up 0.9 of the association at each point; 1 is a retrieved pattern."""
    kinds: tuple[Literal["pattern", "metastable", "average"], ...]
    """One pattern; the mean of some (`entries` ≤ N/2); the mean of most."""


class Capacity(NamedTuple):
    """How many random patterns can be stored and retrieved, at least."""

    base: float
    """c: the number grows as c^((d−1)/4)."""
    patterns: float
    """√p c^((d−1)/4)"""
    valid: bool
    """Whether the theorem's condition c ≥ (2/√p)^(4/(d−1)) holds; where it does not, it promises nothing."""


class HopfieldNetwork(nn.Module):
    r"""Stored patterns x_1 … x_N and states ξ of d numbers, with M = max |x_i| and

        E(ξ) = −β⁻¹ log Σ_i exp(β ⟨x_i, ξ⟩) + |ξ|²/2 + β⁻¹ log N + M²/2,      f(ξ) = Σ_i softmax_i(β ⟨x_i, ξ⟩) x_i

    An update ξ ← f(ξ) never raises E, and ∇E(ξ) = ξ − f(ξ). Where `contraction` < 1 there is one fixed point, near the mean.

    Args: patterns: [N, d], kept as a buffer. beta: β > 0. Raises ShapeError. States are [..., d]. O(N d) an update.
    """

    patterns: Tensor

    def __init__(self, patterns: Tensor, beta: float = 1.0) -> None:
        super().__init__()
        if patterns.dim() != 2 or not len(patterns) or not patterns.is_floating_point():
            raise ShapeError(f"patterns must be [N, d] real numbers, N ≥ 1; received {patterns.dtype} {list(patterns.shape)}.")
        if not 0 < beta < math.inf:
            raise ShapeError(f"beta must be positive and finite; received {beta}.")
        self.beta = beta
        self.register_buffer("patterns", patterns)

    def forward(self, state: Tensor) -> Tensor:
        """The state after it has settled."""
        return self.retrieve(state)[0]

    def association(self, state: Tensor) -> Tensor:
        """softmax(β X ξ) [..., N]."""
        return torch.softmax(self.beta * state @ self.patterns.T, dim=-1)

    def update(self, state: Tensor) -> Tensor:
        """f(ξ) [..., d]."""
        return self.association(state) @ self.patterns

    def energy(self, state: Tensor) -> Tensor:
        """E(ξ) [...], between 0 and 2 M² for states in the convex hull of the patterns."""
        lse = torch.logsumexp(self.beta * state @ self.patterns.T, dim=-1) / self.beta
        return -lse + state.square().sum(-1) / 2 + math.log(len(self.patterns)) / self.beta + self._largest().square() / 2

    def retrieve(self, state: Tensor, *, steps: int | None = None, eps: float = 1e-4) -> tuple[Tensor, Tensor]:
        """The states after `steps` updates, or fewer where one moves them by no more than eps, and how many, int64 [...].

        Without `steps`, until they settle. Raises DivergedError after 1000 updates.
        """
        if steps is not None and steps < 0:
            raise ShapeError(f"steps must be 0 or more, or None until states settle; received {steps}.")
        if state.shape[-1:] != self.patterns.shape[1:]:
            raise ShapeError(f"States as wide as patterns, {self.patterns.shape[1]}, expected; received {list(state.shape)}.")
        flat, X = state.reshape(1, 1, -1, self.patterns.shape[1]), self.patterns[None, None]
        found, updates = settle(flat, X.to(flat), beta=self.beta, steps=-1 if steps is None else steps, eps=eps)
        return found.view_as(state), updates.view(state.shape[:-1])

    @torch.no_grad()
    def fixed_points(self, *, eps: float = 1e-6, apart: float = 1e-3) -> FixedPoints:
        """Every stored pattern settled; states nearer to each other than apart · M are one point. O(N² d) an update."""
        settled, _ = self.retrieve(self.patterns, eps=eps)
        points: list[Tensor] = []
        basin = torch.empty(len(settled), dtype=torch.int64)
        for i, state in enumerate(settled):
            near = [float(torch.linalg.vector_norm(state - point)) for point in points]
            best = min(range(len(near)), key=near.__getitem__, default=-1)
            if best < 0 or near[best] > apart * float(self._largest()):
                best = len(points)
                points.append(state)
            basin[i] = best
        found = torch.stack(points)
        entries = largest_entries(self.association(found))
        half = len(self.patterns) / 2
        kinds = tuple("pattern" if k == 1 else "metastable" if k <= half else "average" for k in entries.tolist())
        return FixedPoints(found, basin, entries, kinds)  # type: ignore[arg-type]

    def separation(self) -> Tensor:
        """Δ_i = ⟨x_i, x_i⟩ − max_{j≠i} ⟨x_i, x_j⟩ [N]: how far each pattern stands from the others; ∞ for a single one."""
        products = self.patterns @ self.patterns.T
        others = products.clone().fill_diagonal_(-torch.inf)
        return products.diagonal() - others.amax(1)

    def contraction(self) -> float:
        """β ‖X − mean‖₂² / 2, of the spectral norm: below 1 every state flows to one point."""
        return float(self.beta * torch.linalg.matrix_norm(self.patterns - self.patterns.mean(0), 2) ** 2 / 2)

    def error_bound(self, distance: float | Tensor) -> Tensor:
        """2 (N−1) M exp(−β (Δ_i − 2 · distance · M)) [N]: how far from x_i one update can end.

        distance: the larger of the state's and of the fixed point's distance from x_i; a number, or [N].
        """
        M = self._largest()
        exponent = -self.beta * (self.separation() - 2 * distance * M)
        return 2 * (len(self.patterns) - 1) * M * exponent.exp() if len(self.patterns) > 1 else torch.zeros_like(exponent)

    def _largest(self) -> Tensor:
        return torch.linalg.vector_norm(self.patterns, dim=-1).max()


def largest_entries(association: Tensor, share: float = 0.9) -> Tensor:
    """k int64 [...]: the least number of the largest entries of softmax vectors [..., N] that sum to `share` or more."""
    running = association.sort(dim=-1, descending=True).values.cumsum(-1)
    return 1 + (running < share).sum(-1).clamp(max=association.shape[-1] - 1)


def regime(association: Tensor) -> Regime:
    """The class of an attention matrix [..., S, N], by the median over its rows of `largest_entries`; the paper's IV to I."""
    k, N = float(largest_entries(association).flatten().double().median()), association.shape[-1]
    return "average" if k > N / 2 else "large cluster" if k > N / 8 else "small cluster" if k > N / 32 else "pattern"


def capacity_bound(width: int, K: float, beta: float, failure: float) -> Capacity:
    """Random patterns on a sphere of radius K √(d−1) that can be stored, but for a chance of `failure`. Theorem 3 of the paper.

    c = b / W₀(exp(a + ln b)),  a = 2/(d−1) (1 + ln(2 β K² p (d−1))),  b = 2 K² β / 5.   width: d ≥ 2. Raises ShapeError.
    """
    if width < 2 or K <= 0 or beta <= 0 or not 0 < failure < 1:
        raise ShapeError(f"width ≥ 2, K > 0, beta > 0, 0 < failure < 1 expected; received {width}, {K}, {beta}, {failure}.")
    a = 2 / (width - 1) * (1 + math.log(2 * beta * K**2 * failure * (width - 1)))
    b = 2 * K**2 * beta / 5
    base = b / float(wrightomega(a + math.log(b)))  # ω(x) = W₀(eˣ)
    return Capacity(base, failure**0.5 * base ** ((width - 1) / 4), base >= (2 / failure**0.5) ** (4 / (width - 1)))
