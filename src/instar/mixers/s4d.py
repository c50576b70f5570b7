"""S4D: a diagonal linear state space for each channel, a long convolution in training and a recurrence in decoding.

Gu, Gupta, Goel, Ré 2022, "On the Parameterization and Initialization of Diagonal State Space Models" (arXiv 2206.11893).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.diagonal_state_space import diagonal_state_space
from instar.mixers import hippo
from instar.mixers.state_space import StateSpace

Start = Literal["lin", "inv", "legs", "real"]
Discretisation = Literal["zoh", "bilinear"]
FAINTEST = -80.0
"""Least log |z|: a factor of zero has no logarithm."""


class S4D(StateSpace):
    r"""x'(t) = λ x(t) + u(t),  y(t) = 2 Re Σ_n C_n x_n(t) + D u(t) for each channel,  out = GLU(W GELU(y) + b), discretised:

        x_t = z x_{t-1} + B̄ u_t,   zero-order hold: z = e^{Δλ}, B̄ = (e^{Δλ} - 1) / λ
                                   bilinear:        z = (1 + Δλ/2) / (1 - Δλ/2), B̄ = Δ / (1 - Δλ/2)

    λ, C, D and Δ are learnt; N / 2 numbers stand for as many conjugate pairs. The layer is the same at every token: nothing in
    it depends on the data.

    Args:
        width: D. heads: part of every mixer's signature; channels are independent, so it changes nothing.
        state_size: N, even: real numbers of a channel's state.
        init: of λ_n, n = 0 … N/2 - 1: "lin" -1/2 + iπn; "inv" -1/2 + i (N/π) (N/(2n+1) - 1); "legs" the eigenvalues of the
            normal part of HiPPO-LegS with positive imaginary part; "real" -(n + 1).
        discretisation: "zoh" or "bilinear". dt_min, dt_max: Δ starts log-uniform between them, for each channel.

    Shapes: x [B, T, D] -> [B, T, D]; state `StateSpaceState`. Raises ShapeError.
    O(T D (D + N + log T)) time, with the log of at most 16384 tokens; O(N D) state.
    Differs from the paper's layer: no dropout; under "real" λ may become complex in training, as in the authors' code.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 1,
        state_size: int = 64,
        init: Start = "lin",
        discretisation: Discretisation = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        if state_size < 2 or state_size % 2:
            raise ShapeError(f"state_size must be positive and even; received state_size={state_size}.")
        if init not in get_args(Start) or discretisation not in get_args(Discretisation):
            known = f"init is one of {', '.join(get_args(Start))} and discretisation one of {', '.join(get_args(Discretisation))}"
            raise ShapeError(f"{known}; received '{init}' and '{discretisation}'.")
        super().__init__(width, heads, eigenvalues(init, state_size // 2), dt_min, dt_max)
        self.discretisation = discretisation

    def discretise(self) -> tuple[Tensor, Tensor]:
        """log z and B̄, complex [D, N / 2]; worked out in float64, as small steps lose what is added to 1."""
        a, step = -self.log_A_real.double().exp(), self.log_dt.double().exp().unsqueeze(-1)
        rate = torch.complex(a, self.A_imag.double())
        if self.discretisation == "zoh":
            log_z = rate * step
            b = (log_z.exp() - 1) / rate
        else:
            half = rate * step / 2
            log_z = ((1 + half) / (1 - half)).log()
            b = step / (1 - half)
        log_z = torch.complex(log_z.real.clamp(min=FAINTEST), log_z.imag)
        kind = torch.complex128 if self.C.dtype == torch.float64 else torch.complex64
        return log_z.to(kind), b.to(kind)

    def respond(self, u: Tensor, c: Tensor, x: Tensor | None, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        return diagonal_state_space(u, *self.discretise(), c, state=x, mask=mask, reset=reset)

    def respond_reference(
        self, u: Tensor, c: Tensor, x: Tensor | None, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return diagonal_state_space(u, *self.discretise(), c, state=x, mask=mask, reset=reset, form="recurrent")


def eigenvalues(init: Start, n_pairs: int) -> Tensor:
    """λ of each pair, complex128 [N / 2]."""
    N, n = 2 * n_pairs, torch.arange(n_pairs, dtype=torch.float64)
    if init == "real":
        return torch.complex(-(n + 1), torch.zeros_like(n))
    if init == "lin":
        imaginary = math.pi * n
    elif init == "inv":
        imaginary = N / math.pi * (N / (2 * n + 1) - 1)
    else:
        imaginary = hippo.normal_plus_low_rank(N)[0].imag
    return torch.complex(torch.full_like(n, -0.5), imaginary)
