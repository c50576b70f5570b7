"""A causal depthwise convolution over a few tokens, with state, padding and resets."""

from __future__ import annotations

import torch
from torch import Tensor


def short_convolution(
    x: Tensor, weight: Tensor, state: Tensor, *, mask: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y_t = Σ_{w<W} weight_{W-1-w} ∘ x_{t-w}, over the real tokens of the present sequence only.

    x [B, T, D], weight [D, 1, W] (as of `nn.Conv1d(D, D, W, groups=D)`), state [B, W - 1, D] the inputs before; mask and reset
    bool [B, T] as for a mixer. Returns y [B, T, D] and the last W - 1 inputs (zeros stand for none). O(T D W).
    """
    B, T, D = x.shape
    W = weight.shape[-1]
    if T == 0 or W == 1:
        return x * weight[:, 0, -1], state
    segment = None if reset is None else reset.to(torch.int64).cumsum(1)
    end = None if segment is None else segment[:, -1:]
    order = None
    if mask is not None:  # real tokens first, in their order: then they are neighbours
        order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
        x = x.gather(1, order.unsqueeze(-1).expand(B, T, D))
        segment = None if segment is None else segment.gather(1, order)
    inputs = torch.cat([state.to(x.dtype), x], dim=1)
    marks = None if segment is None else torch.cat([segment.new_zeros(B, W - 1), segment], dim=1)
    y = torch.zeros_like(x)
    for w in range(W):
        tap = inputs[:, w : w + T]
        if marks is not None:
            tap = tap * (marks[:, w : w + T] == marks[:, W - 1 :]).unsqueeze(-1)
        y = y + tap * weight[:, 0, w]
    if order is None or mask is None:
        state = inputs[:, T:]
        old = None if marks is None else marks[:, T:]
    else:
        last = mask.sum(1, keepdim=True) + torch.arange(W - 1, device=x.device)
        state = inputs.gather(1, last.unsqueeze(-1).expand(B, W - 1, D))
        old = None if marks is None else marks.gather(1, last)
        y = torch.zeros_like(y).scatter(1, order.unsqueeze(-1).expand(B, T, D), y)
    if old is not None and end is not None:
        state = state * (old == end).unsqueeze(-1)
    return y, state.clone()
