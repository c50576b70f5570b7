"""A fused recurrent unit over rows with padding and packed sequences: a batch of sequences of real tokens alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Unit = Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, tuple[Tensor, ...]]]
"""(tokens [N, D], how many sequences have a first, a second, … token, states [S, D]) -> (outputs [N, D], last states [S, D]).
Tokens are all first ones, then all second ones, …; sequences are the longest first."""


def packed_recurrence(
    unit: Unit, x: Tensor, state: tuple[Tensor, ...], mask: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run `unit` over x [B, T, D] from states [B, D], with mask and reset as for a mixer.

    Returns the outputs [B, T, D], zero at padding, and the states after each row: zero where its last sequence has no token.
    """
    B, T, D = x.shape
    real = torch.ones(B, T, dtype=torch.bool, device=x.device) if mask is None else mask
    segment = torch.zeros_like(real, dtype=torch.int64) if reset is None else reset.to(torch.int64).cumsum(1)
    kept = tuple(part.masked_fill((segment[:, -1] > 0).unsqueeze(1), 0.0) for part in state)  # of rows without new tokens
    name = segment + torch.arange(B, device=x.device).unsqueeze(1) * (T + 1)
    token = real.flatten().nonzero().squeeze(1)
    if not token.numel():
        return torch.zeros_like(x), kept
    _, row, lengths = name.flatten()[token].unique_consecutive(return_inverse=True, return_counts=True)
    first = lengths.cumsum(0) - lengths
    step = torch.arange(token.numel(), device=x.device) - first[row]
    longest_first = lengths.argsort(descending=True)
    rank = longest_first.argsort()[row]  # of each token's sequence
    order = (step * lengths.numel() + rank).argsort()
    packed, sizes = token[order], torch.bincount(step).cpu()
    begin = token[first][longest_first]  # the first token of each sequence
    fresh = (segment.flatten()[begin] > 0).unsqueeze(1)
    out, ends = unit(x.flatten(0, 1)[packed], sizes, tuple(part[begin // T].masked_fill(fresh, 0.0) for part in state))
    y = x.new_zeros(B * T, D).to(out.dtype).index_copy(0, packed, out).unflatten(0, (B, T))
    alive = real & (segment == segment[:, -1:])
    last = torch.where(alive, torch.arange(T, device=x.device), -1).amax(1)
    sequence = torch.zeros(B * T, dtype=torch.int64, device=x.device).index_copy(0, token, rank).view(B, T)
    which = sequence.gather(1, last.clamp(min=0).unsqueeze(1)).squeeze(1)
    seen = (last >= 0).unsqueeze(1)
    return y, tuple(torch.where(seen, end[which], old.to(end.dtype)) for end, old in zip(ends, kept, strict=True))
