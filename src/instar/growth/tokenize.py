"""A trained linear layer as Pattention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instar.errors import ShapeError, TransformError
from instar.growth.pattention import Pattention
from instar.growth.plan import multiple

_CLOSE = 1e-6
"""Largest part of the weight, by norm, that may be lost where the conversion is called exact."""


def tokenize_linear(linear: nn.Linear, n: int | None = None, *, mode: str = "linear", lossy: bool = False) -> Pattention:
    r"""W = Vᵀ K: n pairs whose sum of outer products is the weight of a trained `nn.Linear`; the layer can grow from there.

    Args:
        n: pairs; None takes as few as are exact for any weight. mode: linear, or gelu, where each pair stands twice, with both
            signs, since GELU(a) − GELU(−a) = a; other modes have a norm over pairs, which no linear layer has.
        lossy: take the best approximation of rank n (singular values) where the weight has a higher one.

    The layer is converted to the bit in mode linear where n ≥ d_out (K = W, V = I), else but for rounding. O(d³) where n is below
    both widths. Raises TransformError for a weight whose rank is above n, ShapeError for another mode.
    """
    if mode not in ("linear", "gelu"):
        raise ShapeError(f"tokenize_linear expects mode 'linear' or 'gelu'; received {mode!r}. Norms have no linear twin.")
    signs = 2 if mode == "gelu" else 1
    d_out, d_in = linear.weight.shape
    n = signs * min(d_in, d_out) if n is None else n
    multiple("n", n, signs, "in mode gelu each pair stands with both signs")
    with torch.no_grad():
        keys, values = _factors(linear.weight.detach(), n // signs, lossy)
        made = Pattention(d_in, d_out, n, mode=mode, bias=linear.bias is not None)  # type: ignore[arg-type]
        made = made.to(linear.weight.device, linear.weight.dtype).train(linear.training)
        made.keys[0].copy_(torch.cat([keys, -keys][:signs]))
        made.values[0].copy_(torch.cat([values, -values][:signs]))
        if made.bias is not None:
            made.bias.copy_(linear.bias)
    return made


def _factors(weight: Tensor, n: int, lossy: bool) -> tuple[Tensor, Tensor]:
    """K [n, d_in] and V [n, d_out] with Vᵀ K = W."""
    d_out, d_in = weight.shape
    if n < 1:
        raise ShapeError(f"tokenize_linear expects at least one pair; received {n}.")
    if n >= min(d_in, d_out):
        if n >= d_out:
            keys, values = weight, torch.eye(d_out, dtype=weight.dtype, device=weight.device)
        else:
            keys, values = torch.eye(d_in, dtype=weight.dtype, device=weight.device), weight.T
        spare = n - len(keys)
        return torch.cat([keys, keys.new_zeros(spare, d_in)]), torch.cat([values, values.new_zeros(spare, d_out)])
    left, size, right = torch.linalg.svd(weight.double(), full_matrices=False)
    lost = float(size[n:].norm() / size.norm().clamp_min(torch.finfo(torch.float64).tiny))
    if lost > _CLOSE and not lossy:
        raise TransformError(
            f"A weight of shape {tuple(weight.shape)} needs more than {n} pairs: {lost:.2%} of its norm would be lost. Give more "
            "pairs, or say that it may be with lossy=True."
        )
    root = size[:n].sqrt()
    return (root.unsqueeze(1) * right[:n]).to(weight.dtype), (root.unsqueeze(1) * left[:, :n].T).to(weight.dtype)
