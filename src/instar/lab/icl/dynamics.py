r"""What is known in closed form of a linear attention layer trained on linear tasks: optimum, loss, gradients, flow, test error.

Zhang, Frei, Bartlett 2023 (arXiv 2306.09927). x ~ N(0, Λ), w ~ N(0, I), y = ⟨w, x⟩; N pairs in training, M at test;
ŷ = u · (1/M Σ y_i x_i)ᵀ U x_q. Matrices are float64 [d, d].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from instar.errors import DivergedError, ShapeError

_TIME, _LEAST, _LONG = 100.0, 100, 1000
"""Where the flow looks first whether it is there: after this time, but not before 100 steps, nor after 1000."""
_NEAR, _MOST = 1e-3, 100_000
"""It is there where so much of what the optimum gains is missing; it goes so many steps at most."""


def gamma(covariance: Tensor, examples: int) -> Tensor:
    r"""Γ = (1 + 1/N) Λ + (tr Λ / N) I. Raises ShapeError for what is no covariance."""
    L = valid(covariance)
    if examples < 1:
        raise ShapeError(f"Training needs at least one example in a prompt; received {examples}.")
    return (1 + 1 / examples) * L + L.trace() / examples * torch.eye(len(L), dtype=L.dtype)


def valid(covariance: Tensor) -> Tensor:
    """The covariance in float64. Raises ShapeError unless it is square, symmetric and positive definite."""
    L = covariance.double()
    if L.dim() != 2 or L.shape[0] != L.shape[1]:
        raise ShapeError(f"A covariance is a square matrix; received {list(L.shape)}.")
    lowest = float(torch.linalg.eigvalsh(L).min())
    if not torch.allclose(L, L.T) or not lowest > 0:
        raise ShapeError(f"A covariance must be symmetric and positive definite; its lowest eigenvalue is {lowest:.3g}.")
    return L


def optimum(covariance: Tensor, examples: int) -> tuple[Tensor, float]:
    r"""Theorem 4.1: U* = tr(Γ⁻²)^(-1/4) Γ⁻¹ and u* = tr(Γ⁻²)^(1/4), so that u* U* = Γ⁻¹."""
    inverse = torch.linalg.inv(gamma(covariance, examples))
    scale = float(inverse.square().sum() ** 0.25)  # tr Γ⁻² is the squared norm of a symmetric matrix
    return inverse / scale, scale


def loss(U: Tensor, u: Tensor | float, covariance: Tensor, examples: int) -> Tensor:
    r"""L = ½ [u² tr(Γ Λ U Λ Uᵀ) - 2u tr(Λ² U) + tr Λ]: half the expected squared error of the query."""
    L, G = covariance.double(), gamma(covariance, examples)
    return 0.5 * (u**2 * (G @ L @ U @ L @ U.T).trace() - 2 * u * (L @ L @ U).trace() + L.trace())


def gradients(U: Tensor, u: float, covariance: Tensor, examples: int) -> tuple[Tensor, float]:
    r"""∂L/∂U = u² Γ Λ U Λ - u Λ², ∂L/∂u = u tr(Γ Λ U Λ Uᵀ) - tr(Λ² U)."""
    L, G = covariance.double(), gamma(covariance, examples)
    inner = G @ L @ U @ L
    return u**2 * inner - u * L @ L, float(u * (inner * U).sum() - (L @ L * U.T).sum())


def start(width: int, sigma: float, generator: torch.Generator) -> tuple[Tensor, float]:
    r"""The theorem's initialisation: U = σ M Mᵀ / ‖M Mᵀ‖_F with M normal, u = σ."""
    M = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return sigma * M @ M.T / (M @ M.T).norm(), sigma


def small_enough(sigma: float, covariance: Tensor, examples: int) -> bool:
    r"""Whether σ² ‖Γ‖ √d < 2, under which the flow is known to converge."""
    G = gamma(covariance, examples)
    return bool(sigma**2 * torch.linalg.matrix_norm(G, 2) * len(G) ** 0.5 < 2)


def flow(
    U: Tensor, u: float, covariance: Tensor, examples: int, *, time: float | None = None, step: float | None = None
) -> tuple[Tensor, float]:
    r"""Gradient flow on the population loss for `time`, by Runge-Kutta of fourth order. It conserves u² - ‖U‖².

    time: None goes on until the loss is near its least. step: at most so long; None is the inverse of the curvature
    u*² ‖Γ‖ ‖Λ‖² at the optimum. Raises DivergedError where the step is too large, or the loss is not near its least after
    100 000 steps.
    """
    if time is None:
        return _settled(U, u, covariance, examples, step)
    L, G = valid(covariance), gamma(covariance, examples)
    GL, LL = G @ L, L @ L
    step = _longest(L, G) if step is None else step
    if not (step > 0 and time >= 0):
        raise ShapeError(f"Expected step > 0 and time ≥ 0; received {step} and {time}.")

    def slope(U: Tensor, u: float) -> tuple[Tensor, float]:
        inner = GL @ U @ L
        return u * LL - u**2 * inner, float((LL * U.T).sum() - u * (inner * U).sum())

    count = math.ceil(time / step)
    step = time / max(1, count)
    for _ in range(count):
        a, p = slope(U, u)
        b, q = slope(U + step / 2 * a, u + step / 2 * p)
        c, r = slope(U + step / 2 * b, u + step / 2 * q)
        e, s = slope(U + step * c, u + step * r)
        U, u = U + step / 6 * (a + 2 * b + 2 * c + e), u + step / 6 * (p + 2 * q + 2 * r + s)
    if not bool(U.isfinite().all()):
        raise DivergedError(f"The flow diverged with steps of {step}; smaller ones may help.")
    return U, u


def _longest(L: Tensor, G: Tensor) -> float:
    """The step that the curvature at the optimum allows."""
    return 1 / float(torch.linalg.inv(G).norm() * torch.linalg.matrix_norm(G, 2) * torch.linalg.matrix_norm(L, 2) ** 2)


def _settled(U: Tensor, u: float, covariance: Tensor, examples: int, step: float | None) -> tuple[Tensor, float]:
    L, G = valid(covariance), gamma(covariance, examples)
    step = _longest(L, G) if step is None else step
    least = float(loss(*optimum(L, examples), L, examples))
    near = least + _NEAR * (float(L.trace()) / 2 - least)
    time, gone = min(max(_TIME, _LEAST * step), _LONG * step), 0.0
    while gone < _MOST * step:
        U, u = flow(U, u, L, examples, time=time, step=step)
        if float(loss(U, u, L, examples)) <= near:
            return U, u
        gone += time
        time = gone
    raise DivergedError(
        f"The flow is not near the optimum after {_MOST} steps: the covariance's eigenvalues differ too much. Make the inputs' "
        "scales alike, or take the closed form."
    )


@dataclass(frozen=True)
class Expected:
    """Theorem 4.2: E(ŷ - y)² at the optimum, in its three parts."""

    best: float
    """Error of the best linear predictor."""
    variance: float
    """(1/M) tr(S Γ⁻² Λ): the test context is finite."""
    bias: float
    """The terms in 1/N²: Γ is not Λ."""

    @property
    def total(self) -> float:
        return self.best + self.variance + self.bias


def expected(
    covariance: Tensor, examples: int, shown: int, *, law: tuple[Tensor, Tensor, float] | None = None, noise: float = 0.0
) -> Expected:
    r"""The test error with M = `shown` pairs of any joint law of (x, y) with x ~ N(0, Λ).

    law: a = Λ⁻¹ E[xy] [d], S = Cov(xy) [d, d], and the best linear predictor's error. None is the task of training, averaged over
    w ~ N(0, I): a aᵀ averages to I and S to tr(Λ) Λ + Λ², plus σ² Λ for `noise` σ.
    """
    if shown < 1:
        raise ShapeError(f"The theorem speaks of at least one pair; received {shown}.")
    L, G, N = valid(covariance), gamma(covariance, examples), examples
    inverse = torch.linalg.inv(G @ G)
    if law is None:
        outer, S, best = torch.eye(len(L), dtype=L.dtype), L.trace() * L + L @ L + noise**2 * L, noise**2
    else:
        outer, S, best = torch.outer(law[0], law[0]).double(), law[1].double(), law[2]

    def norm(power: int) -> Tensor:
        return (outer @ inverse @ torch.linalg.matrix_power(L, power)).trace()

    t = L.trace()
    bias = (norm(3) + 2 * t * norm(2) + t**2 * norm(1)) / N**2
    return Expected(best, float((S @ inverse @ L).trace()) / shown, float(bias))


def random_covariance_optimum(
    draw: Callable[[torch.Generator], Tensor], examples: int, generator: torch.Generator, draws: int = 20_000
) -> tuple[Tensor, float]:
    r"""Theorem 4.5, Λ_t = diag(l) drawn for each prompt: K = [E Γ_t Λ_t²]⁻¹ E Λ_t², U = K/√‖K‖_F, u = √‖K‖_F.

    draw: the entries l [d] of one prompt. The expectations are means of `draws`. Raises ShapeError.
    """
    l_ = torch.stack([draw(generator) for _ in range(draws)]).double()
    if l_.dim() != 2 or not bool((l_ > 0).all()):
        raise ShapeError("draw must give the positive diagonal of one covariance, [d].")
    G = (1 + 1 / examples) * l_ + l_.sum(1, keepdim=True) / examples
    K = torch.diag((l_**2).mean(0) / (G * l_**2).mean(0))
    size = float(K.norm()) ** 0.5
    return K / size, size
