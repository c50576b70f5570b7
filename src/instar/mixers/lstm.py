"""The long short-term memory as a token mixer: a non-linear recurrence whose memory is a cell that gates open and close.

Hochreiter and Schmidhuber 1997, "Long Short-Term Memory"; forget gates by Gers, Schmidhuber, Cummins 2000.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.packed_recurrence import packed_recurrence


class LSTMState(NamedTuple):
    """What the unit remembers, float32 or better."""

    hidden: Tensor
    """[B, D], its last output."""
    cell: Tensor
    """[B, D]"""


class LSTM(Mixer):
    r"""Long short-term memory, one layer of width D.

        i = σ(W_i x_t + U_i h),  f = σ(W_f x_t + U_f h),  g = tanh(W_g x_t + U_g h),  o = σ(W_o x_t + U_o h)
        c ← f ⊙ c + i ⊙ g,       h ← o ⊙ tanh(c)

    each with biases; the output is h. There is no output projection: a host's residual block needs none, and the eight D × D
    matrices already outnumber the four of attention.

    Args:
        width: D.
        heads: part of every mixer's signature; an LSTM has no heads, so it changes nothing.

    Shapes: x [B, T, D] -> [B, T, D]; state `LSTMState`. Raises ShapeError. O(T D²) time in T dependent steps, O(D) state.
    Differs from the papers: no peepholes, biases and weights start uniform, as in `nn.LSTM`, whose parameters these are
    (`nn.LSTMCell` by name). Compiled with a mask or resets, the steps are unrolled.
    """

    def __init__(self, width: int, *, heads: int = 1) -> None:
        super().__init__()
        if width < 1 or heads < 1:
            raise ShapeError(f"width and heads must be positive; received width={width}, heads={heads}.")
        self.width, self.heads = width, heads
        self.cell = nn.LSTMCell(width, width)  # a holder of weights; torch.compile takes no nn.LSTM, even as a holder

    @property
    def weights(self) -> list[Tensor]:
        """W [4D, D] and U [4D, D] in the order i, f, g, o, and their biases [4D]."""
        return [self.cell.weight_ih, self.cell.weight_hh, self.cell.bias_ih, self.cell.bias_hh]

    def init_state(self, batch: int) -> LSTMState:
        """h = c = 0."""
        weight = self.weights[0]
        hidden = weight.new_zeros(batch, self.width, dtype=torch.promote_types(weight.dtype, torch.float32))
        return LSTMState(hidden, hidden.clone())

    def forward(
        self, x: Tensor, state: LSTMState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LSTMState]:
        """torch's fused unit, over packed segments where there are masks or resets. See `Mixer.forward`."""
        state = self.init_state(x.shape[0]) if state is None else state
        if x.shape[1] == 0:
            return x, state
        start = tuple(part.to(x.dtype) for part in state)
        if mask is None and reset is None:
            start = tuple(part.unsqueeze(0) for part in start)
            y, hidden, cell = torch.lstm(x, start, self.weights, True, 1, 0.0, self.training, False, True)
            return y, LSTMState(hidden[0].to(state.hidden.dtype), cell[0].to(state.cell.dtype))
        if torch.compiler.is_compiling():  # the number of segments is data
            return self.reference(x, state, mask=mask, reset=reset)
        y, (hidden, cell) = packed_recurrence(self._unit, x, start, mask, reset)
        return y, LSTMState(hidden.to(state.hidden.dtype), cell.to(state.cell.dtype))

    def reference(
        self, x: Tensor, state: LSTMState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LSTMState]:
        """The equations, token by token."""
        h, c = self.init_state(x.shape[0]) if state is None else state
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        W, U, b, d = (weight.to(h.dtype) for weight in self.weights)
        y = []
        for t in range(x.shape[1]):
            if reset is not None:
                h, c = (part.masked_fill(reset[:, t, None], 0.0) for part in (h, c))
            i, f, g, o = (x[:, t].to(h.dtype) @ W.mT + b + h @ U.mT + d).chunk(4, dim=-1)
            cell = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            if mask is not None:
                hidden, cell = (torch.where(mask[:, t, None], new, old) for new, old in ((hidden, h), (cell, c)))
            h, c = hidden, cell
            y.append(h)
        return (torch.stack(y, dim=1).to(x.dtype) if y else x), LSTMState(h, c)

    def _unit(self, data: Tensor, sizes: Tensor, start: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """torch's fused unit over a packed batch."""
        start = tuple(part.unsqueeze(0) for part in start)
        out, hidden, cell = torch.lstm(data, sizes, start, self.weights, True, 1, 0.0, self.training, False)
        return out, (hidden[0], cell[0])
