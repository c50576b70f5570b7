"""A layer of leaky integrate-and-fire neurons, which keep their potentials from token to token."""

from __future__ import annotations

import math

from torch import Tensor, nn

from instar.errors import ShapeError
from instar.kernels import leaky_integrate_fire as neurons


class LIF(nn.Module):
    r"""u_t = v_{t-1} + (x_t - v_{t-1}) / τ,  s_t = 1[u_t ≥ θ],  v_t = (1 - s_t) u_t; time is that of the sequence.

    Args:
        tau: τ ≥ 1, tokens after which a potential has decayed to 1/e, about. threshold: θ > 0. alpha: of the surrogate gradient
            α σ(α y) (1 - σ(α y)), y = u - θ, which stands for the slope of the step.
        detach_reset: whether the reset is left out of the backward pass.

    Shapes: x [B, T, D], v [B, D] -> spikes [B, T, D], v [B, D]. Raises ShapeError. See `kernels.leaky_integrate_fire`.
    """

    def __init__(self, *, tau: float = 2.0, threshold: float = 1.0, alpha: float = 4.0, detach_reset: bool = True) -> None:
        super().__init__()
        if not 1 <= tau < math.inf or not 0 < threshold < math.inf or not 0 < alpha < math.inf:
            raise ShapeError(
                f"Neurons expect tau of 1 or more, threshold and alpha above 0, finite; received {tau}, {threshold}, {alpha}."
            )
        self.tau, self.threshold, self.alpha, self.detach_reset = tau, threshold, alpha, detach_reset

    def forward(
        self, x: Tensor, v: Tensor, *, mask: Tensor | None = None, reset: Tensor | None = None, stepwise: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Spikes, and the potentials after the last token; `stepwise` takes the reference form."""
        fire = neurons.stepwise if stepwise else neurons.leaky_integrate_fire
        return fire(
            x,
            v,
            tau=self.tau,
            threshold=self.threshold,
            alpha=self.alpha,
            detach_reset=self.detach_reset,
            mask=mask,
            reset=reset,
        )
