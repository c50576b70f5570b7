"""The Bayes predictor of linear tasks with Gaussian weights and noise."""

from __future__ import annotations

from instar.errors import ShapeError
from instar.lab.least_squares import LeastSquares


class BayesLinear(LeastSquares):
    r"""E[y | context, x] for w ~ N(0, τ²I) and y = ⟨w, x⟩ + N(0, σ²): ridge regression with λ = σ²/τ².

    Args:
        noise: σ ≥ 0. prior: τ > 0. A problem gives its own.

    Raises ShapeError. Nothing has a lower expected squared error on such tasks. Source: Akyürek et al. 2023, section 4.2.
    """

    def __init__(self, *, noise: float = 0.0, prior: float = 1.0) -> None:
        if not (noise >= 0 and prior > 0):
            raise ShapeError(f"Expected noise ≥ 0 and prior > 0; received {noise} and {prior}.")
        super().__init__(ridge=(noise / prior) ** 2)
        self.noise, self.prior = noise, prior
