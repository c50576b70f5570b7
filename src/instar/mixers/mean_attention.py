"""Uniform attention: the mean of all earlier values, the floor under every method that chooses what it reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.prefix_attention import PrefixState, prefix_attention


class MeanState(NamedTuple):
    """What a mean needs, float32 or better."""

    total: Tensor
    """Σ W_v x_i [B, D]."""
    seen: Tensor
    """[B, 1]: real tokens since the last reset."""


class MeanAttention(Mixer):
    r"""y_t = W_o (1/t) Σ_{i≤t} W_v x_i: causal attention whose weights are all equal.

    Args:
        width: D.
        heads: part of every mixer's signature; equal weights are equal in all heads, so it changes nothing.
        bias: biases of the two projections. block: tokens in a block of the scan; it changes the speed only.

    Shapes: x [B, T, D] -> [B, T, D]; state `MeanState`. Raises ShapeError. O(T D² + T · block · D) time, O(D) state. Beyond 2²⁴
    tokens a float32 count stands still.
    """

    def __init__(self, width: int, *, heads: int = 1, bias: bool = False, block: int = 32) -> None:
        super().__init__()
        if width < 1 or heads < 1 or block < 2:
            raise ShapeError(f"width, heads ≥ 1 and block ≥ 2 expected; received {width}, {heads} and {block}.")
        self.width, self.heads, self.block = width, heads, block
        self.v_proj, self.o_proj = nn.Linear(width, width, bias=bias), nn.Linear(width, width, bias=bias)

    def init_state(self, batch: int) -> MeanState:
        """Zeros."""
        weight = self.v_proj.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return MeanState(weight.new_zeros(batch, self.width, dtype=dtype), weight.new_zeros(batch, 1, dtype=dtype))

    def forward(
        self, x: Tensor, state: MeanState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, MeanState]:
        """Prefix attention with equal scores, by blocks. See `Mixer.forward`."""
        total, seen = self.init_state(x.shape[0]) if state is None else state
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        v = self.v_proj(x).unsqueeze(2)
        past = PrefixState(torch.where(seen > 0, 0.0, -torch.inf).to(seen), seen, total.unsqueeze(1))
        o, past = prefix_attention(torch.zeros_like(v[..., 0]), v, past, mask=mask, reset=reset, block=self.block)
        return self.o_proj(o.squeeze(2)), MeanState(past.w.squeeze(1), past.u)

    def reference(
        self, x: Tensor, state: MeanState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, MeanState]:
        """Count and sum, token by token."""
        B, T, D = x.shape
        total, seen = self.init_state(B) if state is None else state
        real = x.new_ones(B, T, dtype=torch.bool) if mask is None else mask
        x = x.masked_fill(~real.unsqueeze(-1), 0.0)
        outputs = [x.new_zeros(B, 0, D)]
        for t in range(T):
            if reset is not None:
                total, seen = (part.masked_fill(reset[:, t, None], 0.0) for part in (total, seen))
            new = real[:, t, None]
            total, seen = total + self.v_proj(x[:, t]) * new, seen + new
            outputs.append((total / seen.clamp(min=1.0)).unsqueeze(1))
        return self.o_proj(torch.cat(outputs, dim=1).to(x.dtype)), MeanState(total, seen)
