"""The gated recurrent unit as a token mixer: the baseline with a state of D numbers and a non-linear recurrence.

Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder" (arXiv 1406.1078).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.packed_recurrence import packed_recurrence


class GRUState(NamedTuple):
    """What the unit remembers."""

    hidden: Tensor
    """[B, D], float32 or better."""


class GRU(Mixer):
    r"""Gated recurrent unit, one layer of width D.

        r = σ(W_r x_t + U_r h),   z = σ(W_z x_t + U_z h),   n = tanh(W_n x_t + r ⊙ (U_n h)),   h ← z ⊙ h + (1 − z) ⊙ n

    each with biases; the output is h. There is no output projection: a host's residual block needs none, and the six D × D
    matrices already outnumber the four of attention.

    Args:
        width: D.
        heads: part of every mixer's signature; a GRU has no heads (a block-diagonal one is another model), so it changes nothing.

    Shapes: x [B, T, D] -> [B, T, D]; state `GRUState`. Raises ShapeError. O(T D²) time in T dependent steps, O(D) state.
    Differs from the paper: the reset gate multiplies U_n h instead of h, as cuDNN and `nn.GRU` do, whose parameters these
    are (`nn.GRUCell` by name).
    Compiled with a mask or resets, the steps are unrolled.
    """

    def __init__(self, width: int, *, heads: int = 1) -> None:
        super().__init__()
        if width < 1 or heads < 1:
            raise ShapeError(f"width and heads must be positive; received width={width}, heads={heads}.")
        self.width, self.heads = width, heads
        self.cell = nn.GRUCell(width, width)  # a holder of weights; torch.compile takes no nn.GRU, even as a holder

    @property
    def weights(self) -> list[Tensor]:
        """W [3D, D] and U [3D, D] in the order r, z, n, and their biases [3D]."""
        return [self.cell.weight_ih, self.cell.weight_hh, self.cell.bias_ih, self.cell.bias_hh]

    def init_state(self, batch: int) -> GRUState:
        """h = 0."""
        weight = self.weights[0]
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return GRUState(torch.zeros(batch, self.width, dtype=dtype, device=weight.device))

    def forward(
        self, x: Tensor, state: GRUState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, GRUState]:
        """torch's fused unit, over packed segments where there are masks or resets. See `Mixer.forward`."""
        state = self.init_state(x.shape[0]) if state is None else state
        if x.shape[1] == 0:
            return x, state
        if mask is None and reset is None:
            h = state.hidden.to(x.dtype).unsqueeze(0)
            y, h = torch.gru(x, h, self.weights, True, 1, 0.0, self.training, False, True)
            return y, GRUState(h[0].to(state.hidden.dtype))
        if torch.compiler.is_compiling():  # the number of segments is data
            return self.reference(x, state, mask=mask, reset=reset)
        y, (hidden,) = packed_recurrence(self._unit, x, (state.hidden.to(x.dtype),), mask, reset)
        return y, GRUState(hidden.to(state.hidden.dtype))

    def reference(
        self, x: Tensor, state: GRUState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, GRUState]:
        """The equations, token by token."""
        h = (self.init_state(x.shape[0]) if state is None else state).hidden
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        W, U, b, c = (weight.to(h.dtype) for weight in self.weights)
        y = []
        for t in range(x.shape[1]):
            if reset is not None:
                h = h.masked_fill(reset[:, t, None], 0.0)
            in_r, in_z, in_n = (x[:, t].to(h.dtype) @ W.mT + b).chunk(3, dim=-1)
            rec_r, rec_z, rec_n = (h @ U.mT + c).chunk(3, dim=-1)
            r, z = torch.sigmoid(in_r + rec_r), torch.sigmoid(in_z + rec_z)
            n = torch.tanh(in_n + r * rec_n)
            new = z * h + (1 - z) * n
            h = new if mask is None else torch.where(mask[:, t, None], new, h)
            y.append(h)
        return (torch.stack(y, dim=1).to(x.dtype) if y else x), GRUState(h)

    def _unit(self, data: Tensor, sizes: Tensor, start: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor]]:
        """torch's fused unit over a packed batch."""
        out, hidden = torch.gru(data, sizes, start[0].unsqueeze(0), self.weights, True, 1, 0.0, self.training, False)
        return out, (hidden[0],)
