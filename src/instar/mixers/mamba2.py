"""Mamba-2: a selective state space whose matrix is a scalar times the identity, computed as masked attention inside blocks.

Dao, Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality", 2024
(arXiv 2405.21060).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.short_convolution import short_convolution
from instar.kernels.state_space_dual import state_space_dual
from instar.mixers.time_step import initial_bias, initial_rate, step_and_gate


class Mamba2State(NamedTuple):
    """What is kept between calls, float32 (float64 in a float64 module): its size does not grow."""

    h: Tensor
    """[B, H, N, P]: N numbers for each of the P channels of a head."""
    past: Tensor
    """Inputs [B, conv_size - 1, ·] of the convolution of x, B and C side by side."""


class Mamba2(Mixer):
    r"""h_t = e^{Δ_t A} h_{t-1} + Δ_t B_t x_tᵀ,  y_t = h_tᵀ C_t + D x_t,  out_t = W_o norm(y_t ∘ swish(z_t)), for each head.

    z, x, B, C and the step Δ are one projection of the input; x, B and C go through a causal convolution and swish. A < 0 and D
    are numbers for each head, Δ_t = softplus(· + b); B and C are shared by the heads of a group.

    Args:
        width: of the model. heads: H, of expand · width / H channels each. state_size: N.
        expand: channels of all heads over width.
        groups: of heads that share B and C, a divisor of heads; the norm is taken over each group.
        conv_size: tokens of the convolution. chunk: tokens of a block; it changes speed and rounding only.

    Shapes: [B, T, width] -> the same; state `Mamba2State`. Raises ShapeError.
    O(T (expand width² + chunk (expand width + N) + N expand width)) time, O(N expand width) state.
    State dicts of the authors' layer (and of `transformers`) load. Differs from the paper: the start of W_o is not divided by the
    depth; limits of Δ, a part without state space (`d_ssm`) and a D for each channel, options of the authors' code, are left out.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        state_size: int = 128,
        expand: float = 2.0,
        groups: int = 1,
        conv_size: int = 4,
        chunk: int = 64,
    ) -> None:
        super().__init__()
        inner = int(width * expand)
        if heads < 1 or inner < 1 or inner % heads:
            raise ShapeError(f"expand * width must be a positive multiple of heads={heads}; received {inner} at width={width}.")
        if groups < 1 or heads % groups:
            raise ShapeError(f"groups must divide heads={heads}; received {groups}.")
        if state_size < 1 or conv_size < 1:
            raise ShapeError(f"state_size and conv_size must be at least 1; received {state_size} and {conv_size}.")
        if chunk < 1 or chunk & (chunk - 1):
            raise ShapeError(f"chunk must be a power of two; received {chunk}.")
        self.width, self.heads, self.inner, self.state_size = width, heads, inner, state_size
        self.groups, self.conv_size, self.chunk = groups, conv_size, chunk
        convolved = inner + 2 * groups * state_size
        self.in_proj = nn.Linear(width, inner + convolved + heads, bias=False)
        self.conv1d = nn.Conv1d(convolved, convolved, conv_size, groups=convolved)
        self.dt_bias, self.A_log = nn.Parameter(initial_bias(heads)), nn.Parameter(initial_rate(heads, 1.0))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def init_state(self, batch: int) -> Mamba2State:
        """Zeros."""
        weight = self.in_proj.weight
        kind = torch.promote_types(weight.dtype, torch.float32)
        h = weight.new_zeros(batch, self.heads, self.state_size, self.inner // self.heads, dtype=kind)
        return Mamba2State(h, weight.new_zeros(batch, self.conv_size - 1, self.conv1d.in_channels, dtype=kind))

    def forward(
        self, x: Tensor, state: Mamba2State | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Mamba2State]:
        """In blocks, or by the recurrence for one token. See `Mixer.forward`."""
        h, past = self.init_state(x.shape[0]) if state is None else state
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        z, xBC, step, gate = self._project(x)
        kind = past.dtype
        xBC, past = short_convolution(xBC, self.conv1d.weight, past, mask=mask, reset=reset)
        values, B, C = self._heads(xBC)
        written = values * step.unsqueeze(-1)
        y, h = state_space_dual(written, B, C, gate, state=h, mask=mask, reset=reset, chunk=self.chunk)
        return self._output(y + self.D.unsqueeze(-1) * values, z), Mamba2State(h, past.to(kind))

    def reference(
        self, x: Tensor, state: Mamba2State | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Mamba2State]:
        """Token by token: convolve, decay, write, read."""
        rows, T, _ = x.shape
        h, past = self.init_state(rows) if state is None else state
        real = x.new_ones(rows, T, dtype=torch.bool) if mask is None else mask
        start = torch.zeros_like(real) if reset is None else reset
        z, xBC, step, gate = self._project(x.masked_fill(~real.unsqueeze(-1), 0.0))
        outputs = [h.new_zeros(rows, 0, self.heads, self.inner // self.heads)]
        for t in range(T):
            drop, keep = start[:, t, None, None], real[:, t, None, None]
            h, past = h.masked_fill(drop.unsqueeze(-1), 0.0), past.masked_fill(drop, 0.0)
            window = torch.cat([past, xBC[:, t : t + 1]], dim=1)
            values, B, C = self._heads((window * self.conv1d.weight[:, 0].T).sum(1, keepdim=True))
            B, C = (part[:, 0].repeat_interleave(self.heads // self.groups, dim=1) for part in (B, C))
            written = step[:, t].unsqueeze(-1) * values[:, 0]
            updated = gate[:, t, :, None, None].exp() * h + B.unsqueeze(-1) * written.unsqueeze(-2)
            h, past = torch.where(keep.unsqueeze(-1), updated, h), torch.where(keep, window[:, 1:], past)
            y = torch.einsum("bhn,bhnp->bhp", C, h) + self.D.unsqueeze(-1) * values[:, 0]
            outputs.append(y.unsqueeze(1))
        return self._output(torch.cat(outputs, dim=1), z), Mamba2State(h, past)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z, then x, B and C before convolution, Δ and Δ A [B, T, H]."""
        z, xBC, raw = self.in_proj(x).split([self.inner, self.conv1d.in_channels, self.heads], dim=-1)
        return z, xBC, *step_and_gate(raw, self.dt_bias, self.A_log)

    def _heads(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bias of the convolution, swish; x [B, T, H, P], B and C [B, T, G, N]."""
        shared = self.groups * self.state_size
        bias = self.conv1d.bias
        assert bias is not None
        x, B, C = F.silu(xBC + bias).split([self.inner, shared, shared], dim=-1)
        return x.unflatten(-1, (self.heads, -1)), B.unflatten(-1, (self.groups, -1)), C.unflatten(-1, (self.groups, -1))

    def _output(self, y: Tensor, z: Tensor) -> Tensor:
        y = (y.flatten(2) * F.silu(z.to(y.dtype))).unflatten(-1, (self.groups, -1))
        y = F.rms_norm(y, y.shape[-1:], eps=self.norm.eps).flatten(2)
        weight = self.out_proj.weight
        return self.out_proj(y.to(weight.dtype) * self.norm.weight)
