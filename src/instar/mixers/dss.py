"""DSS: a diagonal state space for each channel that starts from the eigenvalues of HiPPO's matrix.

Gupta, Gu, Berant 2022, "Diagonal State Spaces are as Effective as Structured State Spaces" (arXiv 2203.14343), the form DSS_EXP.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.mixers.s4d import S4D


class DSS(S4D):
    r"""y = K * u + D u,  K_l = Re Σ_n w_n (e^{Δλ_n} - 1) / λ_n e^{lΔλ_n}  for each channel,  out = W GELU(y) + b.

    λ_n = -e^{a_n} + i b_n, shared by all channels, w, D and Δ are learnt. This is `S4D`'s system by zero-order hold: K is its
    kernel, which counts each number and its conjugate, with C = w / 2. What differs is that λ is shared, where it starts (the
    eigenvalues of the normal part of HiPPO-LegS, w of variance 2), and the output, which has no gate.

    Args:
        width: D. heads: part of every mixer's signature; channels are independent, so it changes nothing.
        states: N complex numbers of a channel's state. dt_min, dt_max: Δ starts log-uniform between them, for each channel.

    Shapes: x [B, T, D] -> [B, T, D]; state `StateSpaceState`. Raises ShapeError. O(T D (D + N + log T)) time, with the log of at
    most 16384 tokens; O(N D) state. Differs from the paper: see the card.
    """

    def __init__(self, width: int, *, heads: int = 1, states: int = 64, dt_min: float = 1e-3, dt_max: float = 1e-1) -> None:
        if states < 1:
            raise ShapeError(f"states must be positive; received states={states}.")
        super().__init__(width, heads=heads, state_size=2 * states, init="legs", dt_min=dt_min, dt_max=dt_max)
        self.states = states
        self.log_A_real, self.A_imag = (nn.Parameter(part[0].detach().clone()) for part in (self.log_A_real, self.A_imag))
        self.C = nn.Parameter(torch.randn(width, states, 2))  # w
        self.output_linear = nn.Linear(width, width)

    def respond(self, u: Tensor, c: Tensor, x: Tensor | None, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        return super().respond(u, c / 2, x, mask, reset)

    def respond_reference(
        self, u: Tensor, c: Tensor, x: Tensor | None, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return super().respond_reference(u, c / 2, x, mask, reset)

    def emit(self, y: Tensor) -> Tensor:
        return self.output_linear(y)
