"""The pseudo-inverse of attention weights, by matrix products alone."""

from __future__ import annotations

import torch
from torch import Tensor


def pseudo_inverse(A: Tensor, iterations: int = 6) -> Tensor:
    """A⁺ of non-negative square matrices [..., m, m], approximately.

    Z_0 = Aᵀ / (‖A‖₁ ‖A‖∞) and Z ← Z (13 I − A Z (15 I − A Z (7 I − A Z))) / 4, of third order: 6 iterations do for the weights of
    attention, badly conditioned matrices take more. Norms are those of each matrix, so that matrices of a batch are apart.
    Razavi et al. 2014; Xiong et al. 2021 (arXiv 2102.03902). O(iterations · m³).
    """
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    norms = A.abs().sum(-2).amax(-1) * A.abs().sum(-1).amax(-1)
    Z = A.mT / norms[..., None, None]
    for _ in range(iterations):
        AZ = A @ Z
        Z = Z @ (13 * eye - AZ @ (15 * eye - AZ @ (7 * eye - AZ))) / 4
    return Z
