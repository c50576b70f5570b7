"""Rows whose real tokens stand at the end, which makes padding and the end of a row free for time-invariant linear systems.

From a state of zero, zeros before the first token change nothing, and the state after the last column is that after the last
token. What an earlier state adds is a sum of its own, by linearity: its response is read at each token's place in the row.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RightAligned:
    """x [B, T, D] with what the mask leaves out moved to the front, as zeros; real tokens keep their order.

    mask, reset: bool [B, T] as for a mixer, or None.
    """

    x: Tensor
    """[B, T, D]"""
    segment: Tensor | None = None
    """int64 [B, T]: resets up to each column's token, itself included; None without resets."""
    count: Tensor | None = None
    """int64 [B]: real tokens; None where all are."""

    def __init__(self, x: Tensor, mask: Tensor | None, reset: Tensor | None) -> None:
        self.x, self._order = x, None
        if reset is not None:
            self.segment = reset.to(torch.int64).cumsum(1)
            self._last = self.segment[:, -1]
        if mask is not None:
            self.count = mask.sum(1)
            self._order = torch.argsort(mask.to(torch.uint8), dim=1, stable=True)
            self.x = x.masked_fill(~mask.unsqueeze(-1), 0.0).gather(1, self._order.unsqueeze(-1).expand_as(x))
            self.segment = None if self.segment is None else self.segment.gather(1, self._order)

    def starts(self) -> Tensor:
        """bool [B, T]: columns with another sequence than the one before."""
        if self.segment is None:
            return torch.zeros(self.x.shape[:2], dtype=torch.bool, device=self.x.device)
        return torch.cat([self.segment[:, :1] > 0, self.segment[:, 1:] != self.segment[:, :-1]], dim=1)

    def contain(self) -> Tensor | None:
        """Put zeros for NaN and infinities in `x`, which transforms and products would carry to tokens before them.

        Returns bool [B, T, D], True from such a number to the end of its sequence, where a recurrence would have none that
        is finite; None where there is no such number.
        """
        bad = ~self.x.isfinite()
        if not torch.compiler.is_compiling() and not bool(bad.any()):
            return None
        self.x = self.x.masked_fill(bad, 0.0)
        column = torch.arange(1, bad.shape[1] + 1, device=bad.device).view(1, -1, 1)
        begin = (column * self.starts().unsqueeze(-1)).cummax(1).values
        return (column * bad).cummax(1).values >= begin.clamp(min=1)

    def free(self, response: Tensor) -> Tensor:
        """What the state before the row adds to each column: its response [B, T, D] after 0, 1, … tokens, while it lives."""
        B, T, D = response.shape
        if self.count is not None:
            place = torch.arange(T, device=response.device) - (T - self.count).unsqueeze(1)
            found = response.gather(1, place.clamp(min=0).unsqueeze(-1).expand(B, T, D))
            response = found.masked_fill((place < 0).unsqueeze(-1), 0.0)
        return response if self.segment is None else response.masked_fill((self.segment > 0).unsqueeze(-1), 0.0)

    def end(self, driven: Tensor, free: Tensor | None) -> Tensor:
        """The state after the row [B, ...]: what its last sequence wrote, and what is left of the state before the row."""
        if self.segment is not None:
            shape = (-1, *[1] * (driven.dim() - 1))
            over = self.segment[:, -1] != self._last  # a reset after the last real token
            driven = driven.masked_fill(over.view(shape), 0.0)
            free = None if free is None else free.masked_fill((self._last > 0).view(shape), 0.0)
        return driven if free is None else driven + free

    def back(self, y: Tensor) -> Tensor:
        """Columns [B, T, D] to where their tokens were, zeros at padding."""
        if self._order is None or self.count is None:
            return y
        real = torch.arange(y.shape[1], device=y.device) >= (y.shape[1] - self.count).unsqueeze(1)
        y = y.masked_fill(~real.unsqueeze(-1), 0.0)
        return torch.zeros_like(y).scatter(1, self._order.unsqueeze(-1).expand_as(y), y)
