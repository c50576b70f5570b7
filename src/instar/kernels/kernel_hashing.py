"""Binary codes by kernelised hash functions, and how those are learned from which pairs attention calls alike.

Liu, Pan, He, Cai, Zhuang 2022, "EcoFormer: Energy-Saving Attention with Linear Complexity" (arXiv 2209.09004), after Liu, Wang,
Ji, Jiang, Chang 2012, "Supervised Hashing with Kernels".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MOMENTUM = 0.9
_SMALLEST = 1e-6


def unit(z: Tensor) -> Tensor:
    """z / |z|, [..., K]; zeros stay zeros."""
    return F.normalize(z, dim=-1, eps=_SMALLEST)


def distances(z: Tensor, anchors: Tensor) -> Tensor:
    """|z − s_j|², z [..., H, N, K] and anchors [H, m, K] -> [..., H, N, m], without the differences."""
    return z.square().sum(-1, keepdim=True) + anchors.square().sum(-1).unsqueeze(-2) - 2 * z @ anchors.mT


def spread(squared: Tensor, real: Tensor) -> Tensor:
    """σ [S, H, 1, 1]: the mean of squared distances [S, H, N, m] over the real tokens [S, N] of a sequence and all anchors."""
    seen = real[:, None, :, None]
    count = real.sum(1).clamp(min=1).view(-1, 1, 1, 1) * squared.shape[-1]
    return (squared.masked_fill(~seen, 0.0).sum((2, 3), keepdim=True) / count).clamp(min=_SMALLEST)


def gaussian(squared: Tensor, sigma: Tensor) -> Tensor:
    """κ = exp(−|z − s|² / 2σ)."""
    return (-squared / (2 * sigma)).exp()


def codes(activation: Tensor) -> Tensor:
    """±1 by sign (0 is +1); backward the identity where |activation| < 1, and nothing elsewhere."""
    bits = torch.where(activation >= 0, 1.0, -1.0).to(activation.dtype)
    passed = torch.where(activation.abs() < 1, activation, 0.0)
    return bits + (passed - passed.detach())  # exactly 0, with its gradient


def similarity(z: Tensor, real: Tensor, pairs: int) -> Tensor:
    """What attention calls alike, [S, H, N, N]: in each row +1 at the `pairs` largest entries of z zᵀ, −1 at the smallest.

    z: [S, H, N, K]. real: bool [S, N]; the others are alike to nothing. Of n tokens at most n // 2 are marked on either side.
    """
    count = real.sum(1).view(-1, 1, 1, 1)
    marked = torch.clamp(count // 2, max=pairs)
    scores = (z @ z.mT).masked_fill(~real[:, None, None], -torch.inf)
    rank = scores.argsort(-1, descending=True).argsort(-1)
    near, far = rank < marked, (rank >= count - marked) & (rank < count)
    return (near.to(z.dtype) - far.to(z.dtype)) * real[:, None, :, None]


def residual(features: Tensor, hashes: Tensor, wanted: Tensor, real: Tensor) -> Tensor:
    """|Σ_r y_r y_rᵀ / c − wanted|² over real pairs, for each head: how badly codes agree with a similarity.

    features: centred κ [S, H, N, m]. hashes: [H, c, m]. wanted: [S, H, N, N]. real: bool [S, N].
    """
    y = codes(features @ hashes.mT) * real[:, None, :, None]
    return (y @ y.mT / hashes.shape[1] - wanted).square().sum((0, 2, 3))


def learn(
    features: Tensor,
    wanted: Tensor,
    real: Tensor,
    hashes: Tensor,
    *,
    iterations: int,
    step: float,
    spectral: bool = False,
) -> Tensor:
    r"""Hash functions a_r, one after the other, that bring Σ_r y_r y_rᵀ near c · wanted, with y_r = sign(κ a_r).

    With R_1 = c · wanted and R_{r+1} = R_r − y_r y_rᵀ, row r climbs y_rᵀ R_r y_r with y relaxed to 2 sigmoid(κ a) − 1, by
    gradient steps with Nesterov's momentum. A head takes its new row only if that is larger with hard signs too, so that each
    row taken lowers the residual.

    Args:
        features, wanted, real: as of `residual`. hashes: [H, c, m], where each row starts.
        iterations: of each row; 0 leaves the rows where they start. step: its length, on the mean over S, H and N c.
        spectral: start from the best direction without signs, the leading generalised eigenvector of (κᵀ R_r κ, κᵀκ).

    Returns [H, c, m]. O(c (iterations + m) S H N²) time. No gradient passes.
    """
    with torch.no_grad():
        seen = real[:, None].to(features.dtype)
        features = features * seen.unsqueeze(-1)
        found, c = hashes.clone(), hashes.shape[1]
        left = c * (wanted + wanted.mT) / 2  # of a quadratic form only this part counts
        scale = c * float(real.sum()) * hashes.shape[0]
        for r in range(c):
            start = _leading(features, left) if spectral else found[:, r]
            row = _climb(features, left, start, iterations, step / scale)
            before, after = (_hard(features, row_, seen) for row_ in (start, row))
            better = _form(left, after) > _form(left, before)
            found[:, r] = torch.where(better.unsqueeze(-1), row, start)
            y = torch.where(better.unsqueeze(-1), after, before)
            left = left - y.unsqueeze(-1) * y.unsqueeze(-2)
    return found


def _climb(features: Tensor, left: Tensor, start: Tensor, iterations: int, step: float) -> Tensor:
    """Gradient ascent on yᵀ R y with y = 2 sigmoid(κ a) − 1 = tanh(κ a / 2), from [H, m]; the gradient is written out."""
    a, velocity = start.clone(), torch.zeros_like(start)
    for _ in range(iterations):
        y = torch.tanh(torch.einsum("shnm,hm->shn", features, a) / 2)
        uphill = (left @ y.unsqueeze(-1)).squeeze(-1) * (1 - y.square())  # 2 R y · dy/da, of which dy/dx = (1 − y²) / 2
        gradient = torch.einsum("shnm,shn->hm", features, uphill)
        velocity = MOMENTUM * velocity + gradient
        a = a + step * (gradient + MOMENTUM * velocity)
    return a


def _hard(features: Tensor, row: Tensor, seen: Tensor) -> Tensor:
    """Signs [S, H, N] of a row [H, m], 0 at padding."""
    return codes(torch.einsum("shnm,hm->shn", features, row)) * seen


def _form(left: Tensor, y: Tensor) -> Tensor:
    """Σ_S yᵀ R y of each head."""
    return torch.einsum("shn,shnl,shl->h", y, left, y)


def _leading(features: Tensor, left: Tensor) -> Tensor:
    """The generalised eigenvector, scaled so that κ a has variance 1: [H, m]."""
    inner = torch.einsum("shnm,shnl,shlk->hmk", features, left, features)
    gram = torch.einsum("shnm,shnk->hmk", features, features)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    size = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=_SMALLEST).view(-1, 1, 1)
    factor = torch.linalg.cholesky(gram + 1e-4 * size * eye)
    half = torch.linalg.solve_triangular(factor, inner, upper=False)
    whole = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    top = torch.linalg.eigh((whole + whole.mT) / 2).eigenvectors[..., -1:]
    a = torch.linalg.solve_triangular(factor.mT, top, upper=True).squeeze(-1)
    variance = torch.einsum("hm,hmk,hk->h", a, gram, a) / features.abs().sum(-1).gt(0).sum((0, 2)).clamp(min=1)
    return a / variance.clamp(min=1e-12).sqrt().unsqueeze(-1)
