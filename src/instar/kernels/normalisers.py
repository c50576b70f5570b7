"""How scores become attention weights that may leave a query unanswered: rows that sum to less than 1.

Scores are [..., C], −∞ at columns that are not seen; so are the weights, 0 there. All of them are in the type of the scores.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_softmax(scores: Tensor, gamma: float, zeta: float = 1.0) -> Tensor:
    """clip((ζ − γ) softmax(x) + γ, 0, 1), ζ ≥ 1, γ ≤ 0 (Bondarenko et al. 2023, arXiv 2306.12929, eq. 4).

    Exactly 0 where softmax ≤ −γ / (ζ − γ), exactly 1 where softmax ≥ (1 − γ) / (ζ − γ), and there without gradient.
    """
    return ((zeta - gamma) * torch.softmax(scores, dim=-1) + gamma).clamp(0.0, 1.0)


def sink_softmax(scores: Tensor, sink: Tensor) -> Tensor:
    """exp(x_i) / (exp(sink) + Σ_j exp(x_j)): a softmax with one more score, whose weight is dropped.

    sink: finite, broadcast to [..., 1]. Zero gives `softmax1`, −∞ would give softmax. Stable: all exponents are at most 0.
    """
    top = torch.maximum(scores.amax(-1, keepdim=True), sink).detach()  # it cancels, and so does its gradient
    weights = torch.exp(scores - top)
    return weights / (torch.exp(sink - top) + weights.sum(-1, keepdim=True))


def softmax1(scores: Tensor) -> Tensor:
    """exp(x_i) / (1 + Σ_j exp(x_j)) (Miller 2023, "Attention Is Off By One"): all weights may go to 0 together."""
    return sink_softmax(scores, scores.new_zeros(()))
