"""S4: a state space with the HiPPO matrix for each channel, a long convolution in training and a recurrence in decoding.

Gu, Goel, Ré 2022, "Efficiently Modeling Long Sequences with Structured State Spaces" (arXiv 2111.00396).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.kernels.dplr_state_space import Discrete, Form, discretise, dplr_state_space
from instar.mixers import hippo
from instar.mixers.state_space import StateSpace

Kernel = Literal["krylov", "cauchy"]


class S4(StateSpace):
    r"""x'(t) = (Λ - P P*) x(t) + B u(t),  y(t) = Re C x(t) + D u(t) for each channel,  out = GLU(W GELU(y) + b), discretised:

        x_t = (I - Δ/2 A)^{-1} (I + Δ/2 A) x_{t-1} + (I - Δ/2 A)^{-1} Δ B u_t

    Λ, P, B, C, D and Δ are learnt, Λ, P and B from HiPPO-LegS; N / 2 numbers stand for as many conjugate pairs. The layer is
    the same at every token: nothing in it depends on the data.

    Args:
        width: D. heads: part of every mixer's signature; channels are independent, so it changes nothing.
        state_size: N, even: real numbers of a channel's state.
        kernel: how the convolution's kernel is found: "cauchy", the paper's, or "krylov", from powers of the matrix. The same
            numbers but for rounding; in plain torch on a CPU the second takes half the time or less.
        dt_min, dt_max: Δ starts log-uniform between them, for each channel.

    Shapes: x [B, T, D] -> [B, T, D]; state `StateSpaceState`. Raises ShapeError.
    O(T D (D + N + N²/64 + log T) + D N³) time; O(N D) state.
    Differs from the paper's layer: C is learnt and not C (I - Ā^L), so that every length and the recurrence are one function; no
    dropout.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 1,
        state_size: int = 64,
        kernel: Kernel = "krylov",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        if state_size < 2 or state_size % 2:
            raise ShapeError(f"state_size must be positive and even; received state_size={state_size}.")
        if kernel not in get_args(Kernel):
            raise ShapeError(f"kernel is one of {', '.join(get_args(Kernel))}; received '{kernel}'.")
        rates, low_rank, _ = hippo.normal_plus_low_rank(state_size)
        super().__init__(width, heads, rates, dt_min, dt_max)
        self.kernel: Kernel = kernel
        pairs = torch.view_as_real(low_rank).to(self.log_dt.dtype).expand(width, -1, 2)
        self.P = nn.Parameter(pairs.clone())
        self.B = nn.Parameter(pairs * 2**0.5)

    def system(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Λ, P, B, complex128 [D, N / 2], and Δ [D]: small steps lose what is added to 1, and powers are taken."""
        rate = torch.complex(-self.log_A_real.double().exp(), self.A_imag.double())
        return rate, torch.view_as_complex(self.P.double()), torch.view_as_complex(self.B.double()), self.log_dt.double().exp()

    def discretise(self) -> Discrete:
        """The bilinear rule, in complex128."""
        return discretise(*self.system())

    def respond(self, u: Tensor, c: Tensor, x: Tensor | None, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        form: Form = "cauchy" if self.kernel == "cauchy" and reset is None and u.shape[1] > 1 else "auto"
        return dplr_state_space(u, self.discretise(), c, state=x, mask=mask, reset=reset, form=form)

    def respond_reference(
        self, u: Tensor, c: Tensor, x: Tensor | None, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """From the whole matrix A of both halves of the pairs."""
        rate, P, B, step = self.system()
        rate, P, B, c = (torch.cat([part, part.conj()], dim=1) for part in (rate, P, B, c))
        A = torch.diag_embed(rate) - P.unsqueeze(2) * P.conj().unsqueeze(1)
        one, half = torch.eye(self.state_size, dtype=A.dtype, device=A.device), step.view(-1, 1, 1) / 2
        A_bar = torch.linalg.solve(one - half * A, one + half * A).to(c.dtype)
        B_bar = torch.linalg.solve(one - half * A, 2 * half * B.unsqueeze(2)).squeeze(2).to(c.dtype)
        x = c.new_zeros(len(u), *c.shape) if x is None else torch.cat([x, x.conj()], dim=2)
        y = torch.zeros_like(u)
        for t in range(u.shape[1]):
            if reset is not None:
                x = x.masked_fill(reset[:, t, None, None], 0.0)
            new = torch.einsum("dnm,bdm->bdn", A_bar, x) + B_bar * u[:, t].unsqueeze(-1)
            x = new if mask is None else torch.where(mask[:, t, None, None], new, x)
            y = y.index_copy(1, torch.tensor([t], device=u.device), (c * x).sum(-1).real.unsqueeze(1))
        return y, x[..., : self.state_size // 2]
