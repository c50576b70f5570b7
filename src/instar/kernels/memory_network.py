r"""The small network whose weights are a memory, and the gradient of what it is asked to remember, written out.

    linear   M(z) = W₁ φ(z)                                   1 matrix
    MLP      M(z) = z + W₁ gelu(W₂ φ(z))                      2 matrices
    gated    M(z) = z + W₁ (gelu(W₂ φ(z)) ∘ W₃ φ(z))          3 matrices

With a norm, M(z) = z + g ∘ norm(what is added to z above, or W₁ φ(z)), the gain g a part of the memory. The loss of a pair (k, v)
is ½ |M(k) - v|², or -⟨M(k), v⟩ (Hebbian). The gradient of a pair with respect to a matrix is *left · rightᵀ*, which is what makes
chunks cheap: no gradient is ever laid out. It is explicit, so it exists under `torch.no_grad` too, and autograd goes through it.

Behrouz et al. 2025, arXiv 2505.23735, sections 3 and 5; norm and residual as of Sun et al. 2024 (TTT, arXiv 2407.04620).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from instar.errors import ShapeError

EPSILON = 1e-5
"""In the norm."""
Layer = Callable[[int, Tensor], Tensor]
"""(i, x) -> W_{i+1} x for x [..., N]; for i = the number of matrices, g ∘ x."""
Pair = tuple[Tensor, Tensor | None]
"""left [..., M] and right [..., N]: the gradient of a matrix is left · rightᵀ; without right it is left, a gain's."""


@dataclass(frozen=True)
class MemoryNetwork:
    """Which network, and which loss; the weights come from outside: W₁ [V, ·], W₂, W₃ [·, F], g [V], with any axes before."""

    matrices: int = 2
    norm: bool = False
    hebbian: bool = False
    largest: float = 0.0
    """The norm n of each matrix' gradient becomes n / √(1 + (n / largest)²); 0 leaves it."""

    def __post_init__(self) -> None:
        if self.matrices not in (1, 2, 3) or not 0 <= self.largest < math.inf:
            raise ShapeError(
                "A memory has 1, 2 or 3 matrices, and a bound of gradients of at least 0; "
                f"received matrices={self.matrices}, largest={self.largest}."
            )

    @property
    def residual(self) -> bool:
        """Whether z itself is a part of the answer."""
        return self.matrices > 1 or self.norm

    def shapes(self, features: int, width: int, expansion: int) -> list[tuple[int, ...]]:
        """Of the weights, for F features, keys and values of one width and expansion · width hidden units."""
        hidden = expansion * width
        inner: list[tuple[int, ...]] = [(hidden, features)] * (self.matrices - 1)
        return [(width, hidden if inner else features), *inner, *([(width,)] if self.norm else [])]

    def answer(self, layer: Layer, z: Tensor, phi: Tensor) -> Tensor:
        """M(z)."""
        if self.matrices == 1:
            out = layer(0, phi)
        else:
            h = F.gelu(layer(1, phi))
            out = layer(0, h * layer(2, phi) if self.matrices == 3 else h)
        if self.norm:
            out = layer(self.matrices, _standardise(out)[0])
        return z + out if self.residual else out

    def gradients(self, weights: list[Tensor], z: Tensor, phi: Tensor, v: Tensor) -> list[Pair]:
        """Of the loss of every pair [R, n, ·], in the order of the weights [R, ...]."""
        hidden, slope, branch = phi, phi, phi
        if self.matrices > 1:
            hidden, slope = gelu(phi @ weights[1].mT)
        if self.matrices == 3:
            branch, activated = phi @ weights[2].mT, hidden
            hidden = activated * branch
        out = hidden @ weights[0].mT
        gain, rate = weights[-1].unsqueeze(-2), out
        if self.norm:
            out, rate = _standardise(out)
        target = v - z if self.residual else v
        error = -v if self.hebbian else (out * gain if self.norm else out) - target
        found: list[Pair] = []
        if self.norm:
            found = [(error * out, None)]
            error = error * gain
            error = rate * (error - error.mean(-1, keepdim=True) - out * (error * out).mean(-1, keepdim=True))
        pairs: list[Pair] = [self._bounded(error, hidden)]
        if self.matrices > 1:
            back = error @ weights[0]
            if self.matrices == 3:
                pairs += [self._bounded(back * branch * slope, phi), self._bounded(back * activated, phi)]
            else:
                pairs.append(self._bounded(back * slope, phi))
        return pairs + found

    def _bounded(self, left: Tensor, right: Tensor) -> Pair:
        """The gradient left · rightᵀ, no longer than `largest`."""
        if self.largest:
            square = left.square().sum(-1, keepdim=True) * right.square().sum(-1, keepdim=True)
            left = left * torch.rsqrt(1 + square / self.largest**2)
        return left, right


def _standardise(x: Tensor) -> tuple[Tensor, Tensor]:
    """x less its mean over its deviation, and one over the deviation."""
    x = x - x.mean(-1, keepdim=True)
    rate = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    return x * rate, rate


class _Gelu(torch.autograd.Function):
    """z -> z Φ(z) and its slope Φ(z) + z φ(z), each needed by inner steps; from z alone again in the gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        below = torch.special.ndtr(z)
        density = torch.exp(-0.5 * z * z).mul_(1 / math.sqrt(2 * math.pi))
        slope = torch.addcmul(below, z, density)
        ctx.save_for_backward(z, density, slope)
        return z * below, slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_value: Tensor, d_slope: Tensor) -> Tensor:
        z, density, slope = ctx.saved_tensors
        return torch.addcmul(d_value * slope, d_slope, density * (2 - z * z))


def gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    """GELU and its slope. The gradient is closed, and is not differentiable again."""
    return _Gelu.apply(z)
