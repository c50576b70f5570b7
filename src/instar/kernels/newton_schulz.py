"""Newton–Schulz iteration: a matrix on the way to its orthogonal factor, by products alone, as the optimiser Muon takes it.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; as an inner step: Behrouz et al. 2025 (arXiv
2505.23735).
"""

from __future__ import annotations

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315
"""Coefficients of Muon: steep at 0 rather than exact at 1."""
EPSILON = 1e-7
"""Beside |S|_F: what is far below it stays small."""


def newton_schulz(S: Tensor, steps: int = 5) -> Tensor:
    r"""X ← a X + (b XXᵀ + c (XXᵀ)²) X, `steps` times from X = S / √(|S|²_F + 10⁻¹⁴), for every matrix S [..., M, N].

    Singular values that are not tiny beside the largest go to about [0.7, 1.2], zeros stay, singular vectors stay: U Σ Vᵀ goes
    to about U Vᵀ. The scale of S is lost. O(steps · min(M, N)² max(M, N)) each. Differs from the source: the root above in place
    of |S|_F + 10⁻⁷, so that the gradient at S = 0 is finite.
    """
    X = S * torch.rsqrt(S.square().sum((-2, -1), keepdim=True) + EPSILON**2)
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    for _ in range(steps):
        gram = X @ X.mT
        X = A * X + (B * gram + C * gram @ gram) @ X
    return X.mT if tall else X
