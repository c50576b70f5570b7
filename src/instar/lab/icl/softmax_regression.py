r"""Softmax regression min_x ½‖softmax(Ax) - b‖²: the one-query view of attention, with exact derivatives and measured shifts.

Li, Song, Xia, Yu, Zhou 2023 (arXiv 2304.13276). A [n, d] is a document of n tokens; with the query x, softmax(Ax) is the row of
attention over it. Everything in the dtype of A; float64 is meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instar.errors import ShapeError


@dataclass(frozen=True)
class SoftmaxRegression:
    """f(x) = softmax(Ax), c = f - b, L = ½‖c‖² + ½‖diag(w) A x‖².

    A: [n, d]. b: [n]; a distribution for what starts from zero. weight: w, a number or [n], of the ridge term; a large one
    makes L
    convex. Raises ShapeError. Loss, gradient and Hessian-vector product take O(nd); the Hessian O(nd²).
    """

    A: Tensor
    b: Tensor
    weight: Tensor | float = 0.0

    def __post_init__(self) -> None:
        if self.A.dim() != 2 or self.b.shape != self.A.shape[:1]:
            raise ShapeError(f"Expected A [n, d] and b [n]; received {list(self.A.shape)} and {list(self.b.shape)}.")

    def probabilities(self, x: Tensor) -> Tensor:
        """f(x), with the largest score taken off before the exponential."""
        return (self.A @ x).softmax(0)

    def loss(self, x: Tensor) -> Tensor:
        """L(x)."""
        return 0.5 * (self.probabilities(x) - self.b).square().sum() + 0.5 * (self.weight * (self.A @ x)).square().sum()

    def gradient(self, x: Tensor) -> Tensor:
        """Aᵀ (f∘c - ⟨f, c⟩ f + w² Ax)."""
        f = self.probabilities(x)
        fc = f * (f - self.b)
        return self.A.T @ (fc - fc.sum() * f + self.weight**2 * (self.A @ x))

    def product(self, x: Tensor, v: Tensor) -> Tensor:
        """The Hessian times v, without the Hessian."""
        f, z = self.probabilities(x), self.A @ v
        c = f - self.b
        fc, inner = f * c, (f * c).sum()
        j = f * z - f * (f @ z)
        first = f * j - f * (f @ j)
        second = fc * z - fc * (f @ z) - f * (fc @ z) - inner * f * z + 2 * inner * f * (f @ z)
        return self.A.T @ (first + second + self.weight**2 * z)

    def hessian(self, x: Tensor) -> Tensor:
        """Aᵀ H A with H = J² + diag(f∘c) - (f∘c) fᵀ - f (f∘c)ᵀ - ⟨f, c⟩ diag(f) + 2⟨f, c⟩ f fᵀ, J = diag(f) - f fᵀ, [d, d]."""
        f = self.probabilities(x)
        fc = f * (f - self.b)
        inner = fc.sum()

        def scaled(values: Tensor) -> Tensor:
            return self.A.T @ (values.unsqueeze(1) * self.A)

        a, e, g = self.A.T @ f, self.A.T @ (f * f), self.A.T @ fc
        square = scaled(f * f) - torch.outer(e, a) - torch.outer(a, e) + (f * f).sum() * torch.outer(a, a)
        rest = scaled(fc) - torch.outer(g, a) - torch.outer(a, g) - inner * scaled(f) + 2 * inner * torch.outer(a, a)
        return square + rest + scaled(torch.as_tensor(self.weight, dtype=f.dtype).square().expand(len(f)))

    def solve(self, start: Tensor | None = None, *, steps: int = 200, tolerance: float = 1e-12) -> Solution:
        """Newton's method with the eigenvalues' absolute values and halved steps, so that it descends where L is not convex.

        It ends when the gradient's norm is at most `tolerance`, when no step lowers L, or after `steps`.
        """
        x = torch.zeros(self.A.shape[1], dtype=self.A.dtype) if start is None else start.clone()
        taken = 0
        for taken in range(steps + 1):
            gradient = self.gradient(x)
            if float(gradient.norm()) <= tolerance or taken == steps:
                break
            values, vectors = torch.linalg.eigh(self.hessian(x))
            size = values.abs().clamp_min(1e-10 * float(values.abs().max()) + 1e-30)
            direction = vectors @ ((vectors.T @ gradient) / size)
            length, now = 1.0, float(self.loss(x))
            while float(self.loss(x - length * direction)) >= now and length > 1e-10:
                length /= 2
            if length <= 1e-10:
                break
            x = x - length * direction
        return Solution(x, float(self.gradient(x).norm()), float(self.loss(x)), taken)

    def step(self, x: Tensor, rate: float) -> Tensor:
        """x - η ∇L(x)."""
        return x - rate * self.gradient(x)

    def moved_labels(self, before: Tensor, after: Tensor) -> Tensor:
        """b̃ = b - f(x') + f(x): moving the weights from x to x' is moving the labels, L_{A,b}(x') = L_{A,b̃}(x) (theorem 5.1)."""
        return self.b - self.probabilities(after) + self.probabilities(before)


@dataclass(frozen=True)
class Solution:
    """What Newton's method found."""

    x: Tensor
    gradient: float
    """Its norm."""
    loss: float
    steps: int


def moved_document(A: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """A' = A + A (x' - x) xᵀ / ‖x‖², so that A' x = A x': the step as a move of the document. Raises ShapeError for x = 0."""
    size = before.square().sum()
    if not float(size) > 0:
        raise ShapeError("A step from x = 0 is no move of the document: every A' gives A' 0 = 0.")
    return A + torch.outer(A @ (after - before), before) / size


@dataclass(frozen=True)
class Certificate:
    """How far the labels moved, and what was sure beforehand."""

    measured: float
    """‖b̃ - b‖ = ‖f' - f‖"""
    tight: float
    """½ ‖A‖ ‖x' - x‖, or ½ ‖A' - A‖ ‖x‖ (operator norms): the Jacobian of a softmax has norm ½ at most."""
    paper: float
    """The chain of Lipschitz constants of exp, its sum and their quotient: exp(O(R² + log n))."""
    applies: bool
    """Whether the move is as small as the paper's theorem asks: no score changes by 0.01 or more."""


def certificate(A: Tensor, x: Tensor, *, x2: Tensor | None = None, A2: Tensor | None = None) -> Certificate:
    r"""The shift of one move, of the weights (x2) or of the document (A2), beside its bounds.

    The paper's chain with R = max(‖A‖, ‖x‖), norms of operators: ‖Δ exp‖ ≤ 2√n R exp(R²) δ, so |Δα| ≤ √n ‖Δ exp‖,
    |Δα⁻¹| ≤ β⁻² |Δα| and ‖Δf‖ ≤ β⁻¹ ‖Δ exp‖ + |Δα⁻¹| √n exp(R²), with β the smaller sum of exponentials; δ is the size of the
    move. Raises ShapeError unless exactly one of x2 and A2 is given.
    """
    if (x2 is None) == (A2 is None):
        raise ShapeError("A certificate is of one move: give x2 or A2.")
    after = A @ x2 if x2 is not None else A2 @ x  # type: ignore[operator]
    before = A @ x
    measured = float((after.softmax(0) - before.softmax(0)).norm())
    norm = torch.linalg.matrix_norm
    size, delta = float(norm(A, 2)), float((x2 - x).norm() if x2 is not None else norm(A2 - A, 2))  # type: ignore[operator]
    tight = 0.5 * delta * (size if x2 is not None else float(x.norm()))
    R, n = max(size, float(x.norm())), len(A)
    # In logarithms: exp(R²) leaves the range of floats at R = 27.
    exponential = math.log(2 * math.sqrt(n) * R) + R**2 if R > 0 else -math.inf
    beta = min(float(before.logsumexp(0)), float(after.logsumexp(0)))
    parts = torch.tensor([exponential - beta, -2 * beta + math.log(n) + exponential + R**2], dtype=torch.float64)
    paper = float(torch.logsumexp(parts, 0).exp()) * delta
    return Certificate(measured, tight, paper, bool((after - before).abs().max() < 0.01))
