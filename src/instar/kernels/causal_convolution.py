"""A causal convolution over tokens that mixes channels, with state, padding and resets."""

from __future__ import annotations

import torch
from torch import Tensor


class Taps:
    """Which inputs each token reads: its own and the `reach` real ones of its sequence before it. One for all layers of a stack.

    x [B, T, D] decides sizes and device; mask, reset: bool [B, T] as for a mixer.
    """

    def __init__(self, x: Tensor, reach: int, mask: Tensor | None, reset: Tensor | None) -> None:
        B, T, _ = x.shape
        self.reach = reach
        self.places: list[Tensor] | None = None
        """[B, T] for each earlier input, the farthest first, in a row of `reach` inputs before and T of now; None: neighbours."""
        self.apart: list[Tensor] | None = None
        """[B, T]: where that input is of another sequence."""
        self.last: Tensor | None = None
        """[B, reach]: places of the last inputs; None: the end of the row."""
        self.gone: Tensor | None = None
        """[B, reach]: where those are of another sequence than what comes next."""
        segment = None
        if reset is not None:
            segment = torch.cat([reset.new_zeros(B, reach, dtype=torch.int64), reset.to(torch.int64).cumsum(1)], dim=1)
        if mask is not None:
            before = torch.arange(reach, device=x.device).expand(B, reach)
            order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)  # real tokens first
            row = torch.cat([before, order + reach], dim=1)
            count = mask.to(torch.int64).cumsum(1)
            self.places = [row.gather(1, (count - 1 + w).clamp(min=0)) for w in range(reach)]
            self.last = row.gather(1, count[:, -1:] + before) if T else before
        if segment is not None:
            own = segment[:, reach:]
            earlier = [segment[:, w : w + T] if self.places is None else segment.gather(1, self.places[w]) for w in range(reach)]
            self.apart = [one != own for one in earlier]
            end = segment[:, T:] if self.last is None else segment.gather(1, self.last)
            self.gone = end != segment[:, -1:]

    def read(self, inputs: Tensor, w: int) -> Tensor:
        """Input number w of each token, the farthest being 0, of inputs [B, reach + T, D]: [B, T, D], else zero."""
        T = inputs.shape[1] - self.reach
        found = inputs[:, w : w + T]
        if w == self.reach:
            return found
        if self.places is not None:
            found = inputs.gather(1, self.places[w].unsqueeze(-1).expand(-1, -1, inputs.shape[2]))
        return found if self.apart is None else found.masked_fill(self.apart[w].unsqueeze(-1), 0.0)

    def end(self, inputs: Tensor) -> Tensor:
        """The last `reach` inputs [B, reach, D], zero where there is none."""
        found = inputs[:, inputs.shape[1] - self.reach :]
        if self.last is not None:
            found = inputs.gather(1, self.last.unsqueeze(-1).expand(-1, -1, inputs.shape[2]))
        return found.clone() if self.gone is None else found.masked_fill(self.gone.unsqueeze(-1), 0.0)


def causal_convolution(x: Tensor, weight: Tensor, state: Tensor, taps: Taps) -> tuple[Tensor, Tensor]:
    """y_t = Σ_{w<W} weight_w x_{t-W+1+w} over the real tokens of the present sequence only, as one matrix product.

    x [B, T, D]; weight [O, D, W], as of `nn.Conv1d`; state [B, W - 1, D], the inputs before; taps of reach W - 1.
    Returns y [B, T, O] and the last W - 1 inputs (zeros stand for none). O(T D O W).
    """
    inputs = torch.cat([state.to(x.dtype), x], dim=1)
    read = torch.cat([taps.read(inputs, w) for w in range(weight.shape[2])], dim=-1)
    return read @ weight.permute(2, 1, 0).flatten(0, 1), taps.end(inputs)


def stepwise(
    x: Tensor, weight: Tensor, state: Tensor, mask: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same, token by token: the oracle of `causal_convolution`."""
    state, outputs = state.to(x.dtype), [x.new_zeros(x.shape[0], 0, weight.shape[0])]
    for t in range(x.shape[1]):
        if reset is not None:
            state = state.masked_fill(reset[:, t, None, None], 0.0)
        window = torch.cat([state, x[:, t : t + 1]], dim=1)
        outputs.append(torch.einsum("bwd,odw->bo", window, weight).unsqueeze(1))
        state = window[:, 1:] if mask is None else torch.where(mask[:, t, None, None], window[:, 1:], state)
    return torch.cat(outputs, dim=1), state
