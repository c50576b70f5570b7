"""S4D: a diagonal linear state space for each channel, a long convolution in training and a recurrence in decoding.

Gu, Gupta, Goel, Ré 2022, "On the Parameterization and Initialization of Diagonal State Space Models" (arXiv 2206.11893).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.diagonal_state_space import Form, diagonal_state_space

Start = Literal["lin", "inv", "legs", "real"]
Discretisation = Literal["zoh", "bilinear"]
FAINTEST = -80.0
"""Least log |z|: a factor of zero has no logarithm."""


class S4DState(NamedTuple):
    """What is kept between calls: its size does not grow."""

    x: Tensor
    """[B, D, N / 2, 2]: real and imaginary parts, float32 (float64 in a float64 module)."""


class S4D(Mixer):
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

    Shapes: x [B, T, D] -> [B, T, D]; state `S4DState`. Raises ShapeError.
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
        super().__init__()
        if width < 1 or heads < 1 or state_size < 2 or state_size % 2:
            raise ShapeError(
                "width and heads must be positive and state_size positive and even; "
                f"received width={width}, heads={heads}, state_size={state_size}."
            )
        if init not in get_args(Start) or discretisation not in get_args(Discretisation):
            known = f"init is one of {', '.join(get_args(Start))} and discretisation one of {', '.join(get_args(Discretisation))}"
            raise ShapeError(f"{known}; received '{init}' and '{discretisation}'.")
        if not 0 < dt_min <= dt_max:
            raise ShapeError(f"dt_min and dt_max must be positive, in this order; received {dt_min} and {dt_max}.")
        self.width, self.heads, self.state_size, self.discretisation = width, heads, state_size, discretisation
        rates = eigenvalues(init, state_size // 2).expand(width, -1)
        self.log_dt = nn.Parameter(torch.rand(width) * math.log(dt_max / dt_min) + math.log(dt_min))
        self.log_A_real = nn.Parameter((-rates.real).log().to(self.log_dt.dtype))
        self.A_imag = nn.Parameter(rates.imag.to(self.log_dt.dtype).clone())
        self.C = nn.Parameter(torch.randn(width, state_size // 2, 2) * math.sqrt(0.5))  # complex, of variance 1
        self.D = nn.Parameter(torch.randn(width))
        self.output_linear = nn.Linear(width, 2 * width)

    def init_state(self, batch: int) -> S4DState:
        """Zeros."""
        kind = torch.promote_types(self.C.dtype, torch.float32)
        return S4DState(self.C.new_zeros(batch, self.width, self.state_size // 2, 2, dtype=kind))

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

    def forward(
        self, x: Tensor, state: S4DState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, S4DState]:
        """By Fourier transforms; with resets in blocks; one token by the recurrence. See `Mixer.forward`."""
        return self._run("auto", x, state, mask, reset)

    def reference(
        self, x: Tensor, state: S4DState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, S4DState]:
        """Token by token: `diagonal_state_space.recurrent`."""
        return self._run("recurrent", x, state, mask, reset)

    def _run(
        self, form: Form, x: Tensor, state: S4DState | None, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, S4DState]:
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        log_z, b = self.discretise()
        kind = b.real.dtype
        with torch.autocast(x.device.type, enabled=False):
            u, before = x.to(kind), None if state is None else torch.view_as_complex(state.x.to(kind).contiguous())
            c = torch.view_as_complex(self.C.to(kind))
            y, after = diagonal_state_space(u, log_z, b, c, state=before, mask=mask, reset=reset, form=form)
            y = F.gelu(y + self.D.to(kind) * u)
        return F.glu(self.output_linear(y.to(self.output_linear.weight.dtype))), S4DState(torch.view_as_real(after))


def eigenvalues(init: Start, n_pairs: int) -> Tensor:
    """λ of each pair, complex128 [N / 2]."""
    N, n = 2 * n_pairs, torch.arange(n_pairs, dtype=torch.float64)
    if init == "real":
        return torch.complex(-(n + 1), torch.zeros_like(n))
    if init == "lin":
        imaginary = math.pi * n
    elif init == "inv":
        imaginary = N / math.pi * (N / (2 * n + 1) - 1)
    else:  # A + P Pᵀ is -1/2 plus a skew matrix S, and -i S is Hermitian
        root = (2 * torch.arange(N, dtype=torch.float64) + 1).sqrt()
        lower = torch.outer(root, root).tril(-1) / 2
        imaginary = torch.linalg.eigvalsh(1j * (lower - lower.mT))[n_pairs:]
    return torch.complex(torch.full_like(n, -0.5), imaginary)
