"""What makes attention a Hopfield association: β, the number of updates and when they stop, and normalised patterns."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.kernels.hopfield import Beta, Eps, Steps

INITIAL_STD = 0.02
"""Of every projection and of every pattern that is learned."""


class Association(nn.Module):
    """β, steps and eps of H heads, checked; `knobs` hands them to the functions of `instar.kernels.hopfield`.

    beta: a number, or one for each head; positive. learn_beta: log β of each head becomes a parameter, `log_beta` [H].
    steps: updates before the association, −1 until states settle; a number, or one for each head. eps: positive, or one for each
    head. Raises ShapeError.
    """

    log_beta: nn.Parameter | None

    def __init__(self, heads: int, beta: float | tuple[float, ...], steps: Steps, eps: Eps, learn_beta: bool) -> None:
        super().__init__()
        for name, value in (("beta", beta), ("steps", steps), ("eps", eps)):
            if isinstance(value, tuple) and len(value) != heads:
                raise ShapeError(f"{name} must be one number or one for each of {heads} heads; received {len(value)}.")
        if not all(0 < b < math.inf for b in _each(beta)):
            raise ShapeError(f"beta must be positive and finite; received {beta}.")
        if not all(n >= -1 for n in _each(steps)):
            raise ShapeError(f"steps must be 0 or more, or -1 for updates until states settle; received {steps}.")
        if not all(0 < e < math.inf for e in _each(eps)):
            raise ShapeError(f"eps must be positive; received {eps}.")
        self.heads, self.fixed_beta, self.steps, self.eps = heads, beta, steps, eps
        self.register_parameter("log_beta", None)
        if learn_beta:
            start = torch.tensor(beta, dtype=torch.float64).log().expand(heads)
            self.log_beta = nn.Parameter(start.to(torch.get_default_dtype()).clone())

    def beta(self, like: Tensor) -> Beta:
        """A number where all heads share one that is fixed, else [H]."""
        if self.log_beta is not None:
            return self.log_beta.exp()
        if isinstance(self.fixed_beta, float):
            return self.fixed_beta
        return torch.tensor(self.fixed_beta, dtype=like.dtype, device=like.device)


class PatternNorms(nn.Module):
    """Layer norms of state, stored and projected patterns, which in self-association are all made of the same x; or none."""

    def __init__(self, width: int, normalize: bool) -> None:
        super().__init__()
        self.state, self.stored, self.projection = (nn.LayerNorm(width) if normalize else nn.Identity() for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.state(x), self.stored(x), self.projection(x)


def initialise(mixer: nn.Module) -> None:
    """Projections N(0, 0.02²), biases 0."""
    for module in mixer.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=INITIAL_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _each(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)
