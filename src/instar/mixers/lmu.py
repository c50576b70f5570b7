"""The parallelisable Legendre memory unit: a linear memory of the last θ tokens, between two non-linear projections.

Voelker, Kajić, Eliasmith 2019, "Legendre Memory Units: Continuous-Time Representation in Recurrent Neural Networks"; without
feedback into the memory it runs in parallel: Chilkuri, Eliasmith 2021 (arXiv 2102.11417), and LMUFormer, Liu, Datta, Li, Beerel
2024 (arXiv 2402.04882).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.legendre_memory import Form, Rule, legendre_memory, system


class LMUState(NamedTuple):
    """What is kept between calls: its size does not grow."""

    m: Tensor
    """[B, H, O]: Legendre coefficients of the last θ inputs of each memory, float32 (float64 in a float64 module)."""


class LMU(Mixer):
    r"""u_t = ReLU(W_u x_t + b_u),  m_t = Ā m_{t-1} + B̄ u_t,  h_t = ReLU(W_h [m_t; x_t] + b_h),  out_t = W_o h_t + b_o.

    u has a number for each of H memories; Ā and B̄ are fixed, and such that Σ_i P_i(2r - 1) m_i(t) ≈ u(t - r θ) for 0 ≤ r ≤ 1
    (`legendre_memory.decoder`): m is the window of the last θ tokens, compressed to O coefficients.

    Args:
        width: D. heads: H, memories with an input each; the papers have one.
        order: O. theta: θ in tokens; any positive number, also longer than the sequence.
        discretisation: "zoh" (zero-order hold, the papers'), "forward" or "backward" (Euler), or "bilinear" (Tustin). Forward
            Euler needs θ well above order².

    Shapes: x [B, T, D] -> [B, T, D]; state `LMUState`. Raises ShapeError, also where a discretisation is unstable.
    O(T (D² + H O D + H O (O + 64))) time, O(H O) state. W_u and W_h start normal, of deviation 0.02, their biases at 0.
    Differs from LMUFormer's block: the batch norm after W_o, and the mixer of channels, are a host's.
    """

    def __init__(
        self, width: int, *, heads: int = 1, order: int = 64, theta: float = 128.0, discretisation: Rule = "zoh"
    ) -> None:
        super().__init__()
        if width < 1 or heads < 1:
            raise ShapeError(f"width and heads must be positive; received width={width}, heads={heads}.")
        self.width, self.heads, self.order, self.theta, self.discretisation = width, heads, order, theta, discretisation
        self.memory = system(order, theta, discretisation)  # no buffer: in half precision its powers would be lost
        self.u_proj = nn.Linear(width, heads)
        self.h_proj = nn.Linear(heads * order + width, width)
        self.o_proj = nn.Linear(width, width)
        for projection in (self.u_proj, self.h_proj):
            nn.init.trunc_normal_(projection.weight, std=0.02)
            nn.init.zeros_(projection.bias)

    def init_state(self, batch: int) -> LMUState:
        """Zeros."""
        weight = self.o_proj.weight
        kind = torch.promote_types(weight.dtype, torch.float32)
        return LMUState(weight.new_zeros(batch, self.heads, self.order, dtype=kind))

    def forward(
        self, x: Tensor, state: LMUState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LMUState]:
        """In blocks, or by the recurrence for one token. See `Mixer.forward`."""
        return self._run("auto", x, state, mask, reset)

    def reference(
        self, x: Tensor, state: LMUState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LMUState]:
        """Token by token: `legendre_memory.recurrent`."""
        return self._run("recurrent", x, state, mask, reset)

    def _run(
        self, form: Form, x: Tensor, state: LMUState | None, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, LMUState]:
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        kind = torch.promote_types(self.o_proj.weight.dtype, torch.float32)
        u = F.relu(self.u_proj(x)).to(kind)
        with torch.autocast(x.device.type, enabled=False):
            before = None if state is None else state.m.to(kind)
            m, after = legendre_memory(u, self.memory, state=before, mask=mask, reset=reset, form=form)
        h = F.relu(self.h_proj(torch.cat([m.flatten(2).to(x.dtype), x], dim=-1)))
        return self.o_proj(h), LMUState(after)
