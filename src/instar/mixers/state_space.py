"""What S4 and S4D share: linear state spaces of single channels, around them a skip and a gated output, and their state."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer

Respond = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]


class StateSpaceState(NamedTuple):
    """What is kept between calls: its size does not grow."""

    x: Tensor
    """[B, D, N / 2, 2]: real and imaginary parts, float32 (float64 in a float64 module)."""


class StateSpace(Mixer):
    """out = GLU(W GELU(y + D u) + b), y the response of each channel's system of N / 2 conjugate pairs to its input u.

    A method gives the starting rates Λ, complex [N / 2], and what its systems respond. The rates are kept as `log_A_real` and
    `A_imag` [D, N / 2]; C is drawn complex normal, Δ log-uniform in [dt_min, dt_max]. Raises ShapeError.
    """

    def __init__(self, width: int, heads: int, rates: Tensor, dt_min: float, dt_max: float) -> None:
        super().__init__()
        if width < 1 or heads < 1:
            raise ShapeError(f"width and heads must be positive; received width={width}, heads={heads}.")
        if not 0 < dt_min <= dt_max < math.inf:
            raise ShapeError(f"dt_min and dt_max must be positive and finite, in this order; received {dt_min} and {dt_max}.")
        self.width, self.heads, self.state_size = width, heads, 2 * len(rates)
        rates = rates.expand(width, -1)
        self.log_dt = nn.Parameter(torch.rand(width) * math.log(dt_max / dt_min) + math.log(dt_min))
        self.log_A_real = nn.Parameter((-rates.real).log().to(self.log_dt.dtype))
        self.A_imag = nn.Parameter(rates.imag.to(self.log_dt.dtype).clone())
        self.C = nn.Parameter(torch.randn(width, rates.shape[1], 2) * math.sqrt(0.5))  # complex, of variance 1
        self.D = nn.Parameter(torch.randn(width))
        self.output_linear = nn.Linear(width, 2 * width)

    @abc.abstractmethod
    def respond(self, u: Tensor, c: Tensor, x: Tensor | None, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """y [B, T, D] and the state after u [B, T, D] from x, complex [B, D, N / 2], None being zero; c complex [D, N / 2]."""

    @abc.abstractmethod
    def respond_reference(
        self, u: Tensor, c: Tensor, x: Tensor | None, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same token by token."""

    def emit(self, y: Tensor) -> Tensor:
        """The output of GELU(y + D u), [B, T, D]."""
        return F.glu(self.output_linear(y))

    def init_state(self, batch: int) -> StateSpaceState:
        """Zeros."""
        kind = torch.promote_types(self.C.dtype, torch.float32)
        return StateSpaceState(self.C.new_zeros(batch, self.width, self.state_size // 2, 2, dtype=kind))

    def forward(
        self, x: Tensor, state: StateSpaceState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, StateSpaceState]:
        """By Fourier transforms; with resets in blocks; one token by the recurrence. See `Mixer.forward`."""
        return self._run(self.respond, x, state, mask, reset)

    def reference(
        self, x: Tensor, state: StateSpaceState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, StateSpaceState]:
        """Token by token."""
        return self._run(self.respond_reference, x, state, mask, reset)

    def _run(
        self, respond: Respond, x: Tensor, state: StateSpaceState | None, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, StateSpaceState]:
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        kind = torch.promote_types(self.C.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            u, before = x.to(kind), None if state is None else torch.view_as_complex(state.x.to(kind).contiguous())
            y, after = respond(u, torch.view_as_complex(self.C.to(kind)), before, mask, reset)
            y = F.gelu(y + self.D.to(kind) * u)
        return self.emit(y.to(self.output_linear.weight.dtype)), StateSpaceState(torch.view_as_real(after))
