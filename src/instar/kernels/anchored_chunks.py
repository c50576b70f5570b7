"""Rows with padding and packed sequences, laid out in chunks that start where each sequence's own chunks start.

Where a chunk's place decides what is computed, as it does for memories that take all of a chunk's gradients at the weights before
it, chunks are counted in real tokens from the first one of a sequence, whatever calls it is cut into. A call's first chunk of a
row may continue one that an earlier call began; then it has room for what is left of it. Every chunk sees a window of tokens
before it, of its own sequence.

Axes: B rows, T tokens, N chunks, C tokens of a chunk, P tokens before a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor


class AnchoredChunks:
    """Where tokens go.

    B, T; C, P; seen: int64 [B], tokens of the present sequence before this call, or None for none. mask, reset: bool [B, T] as
    for a mixer, or None. Compiled, N is the most that T tokens can need, as many as tokens where there are resets.
    """

    fresh: Tensor | None = None
    """bool [N, B]: the chunk is the first of a new sequence; None without resets."""
    full: Tensor | None = None
    """bool [N, B]: the chunk is complete with its last token here; None where this is so for all but a last part."""
    dropped: Tensor | None = None
    """bool [B]: a reset after the last real token; None without resets."""
    closing: Tensor | None = None
    """bool [N, B, C]: the token completes its chunk; None where this is so for every C-th."""
    own: Tensor | None = None
    """bool [N, B, C]: a token stands there; None where this is so from the first to the last token."""
    before: Tensor
    """bool [N, B, P + C]: of the tokens of a chunk and of those before it."""
    seen: Tensor
    """int64 [B]: tokens of the present sequence after this call."""

    def __init__(
        self, B: int, T: int, C: int, P: int, seen: Tensor | None, mask: Tensor | None, reset: Tensor | None, device: torch.device
    ) -> None:
        self.B, self.T, self.C, self.P, self.even = B, T, C, P, seen is None and mask is None and reset is None
        if self.even:
            self.N = -(-T // C)
            place = torch.arange(self.N, device=device).unsqueeze(1) * C + torch.arange(-P, C, device=device)
            self.before = ((place >= 0) & (place < T)).unsqueeze(1).expand(self.N, B, P + C)
            self.seen = torch.full((B,), T, device=device)
            return
        real = torch.ones(B, T, dtype=torch.bool, device=device) if mask is None else mask
        earlier = torch.zeros(B, dtype=torch.int64, device=device) if seen is None else seen
        segment = torch.zeros_like(real, dtype=torch.int64) if reset is None else reset.to(torch.int64).cumsum(1)
        self._order = torch.argsort((~real).to(torch.uint8), dim=1, stable=True)
        self._real, self._count = real, real.sum(1)
        column = torch.arange(T, device=device).expand(B, T)
        there = column < self._count.unsqueeze(1)
        present = segment[:, -1]
        segment = segment.gather(1, self._order)
        first = torch.cat([torch.ones_like(there[:, :1]), segment[:, 1:] != segment[:, :-1]], dim=1)
        ordinal = column - torch.where(first, column, 0).cummax(1)[0]
        ordinal = torch.where(segment == 0, ordinal + earlier.unsqueeze(1), ordinal)
        begins = there & (first | (ordinal % C == 0))
        chunk = (begins.cumsum(1) - 1).clamp(min=0)
        if torch.compiler.is_compiling():
            self.N = T if reset is not None else min(T, -(-T // C) + 1)
        else:
            self.N = max(1, int(begins.sum(1).max()))

        def by_chunk(values: Tensor, where: Tensor) -> Tensor:  # [B, T] to [B, N], from the one token of each chunk
            return values.new_zeros(B, self.N).scatter_add(1, chunk, values * where)

        start = by_chunk(column, begins)
        length = by_chunk(there.to(torch.int64), there)
        which = by_chunk(segment, begins)
        self.full = (by_chunk((ordinal % C == C - 1).to(torch.int64), there) > 0).mT
        if reset is not None:
            self.fresh = (by_chunk((first & (segment > 0)).to(torch.int64), begins) > 0).mT
            last = torch.where(there, segment, 0).amax(1)
            self.dropped = present > last
        self._slot = (chunk * C + column - start.gather(1, chunk)).clamp(max=self.N * C - 1)
        slots = torch.arange(C, device=device)
        self.own = (slots < length.unsqueeze(2)).transpose(0, 1)
        self.closing = (slots == length.unsqueeze(2) - 1).transpose(0, 1) & self.full.unsqueeze(2)
        self._own = (start.unsqueeze(2) + slots).clamp(max=T - 1).flatten(1)
        place = start.unsqueeze(2) + torch.arange(P + C, device=device)  # among P carried tokens and the real ones
        self._window = place.clamp(max=P + T - 1).flatten(1)
        label = segment.masked_fill(~there, -1)
        kept = (torch.arange(-P, 0, device=device) + earlier.clamp(max=P).unsqueeze(1)) >= 0
        label = torch.cat([torch.where(kept, 0, -1), label], dim=1)
        inside = torch.arange(P + C, device=device) < P + length.unsqueeze(2)
        same = label.gather(1, self._window).view(B, self.N, P + C) == which.unsqueeze(2)
        self.before = (inside & same & (length > 0).unsqueeze(2)).transpose(0, 1)
        self._last = self._count.unsqueeze(1) + torch.arange(P, device=device)
        self._kept = label.gather(1, self._last) == present.unsqueeze(1)
        self.seen = torch.where(present == 0, earlier, 0) + (there & (segment == present.unsqueeze(1))).sum(1)

    def chunks(self, x: Tensor) -> Tensor:
        """[B, T, ...] to [N, B, C, ...]; what stands where no token does means nothing (zeros after the last token if even)."""
        if self.even:
            return self._padded(x).unflatten(1, (self.N, self.C)).transpose(0, 1)
        return _take(_take(x, self._order), self._own).unflatten(1, (self.N, self.C)).transpose(0, 1)

    def windows(self, x: Tensor, carried: Tensor) -> Tensor:
        """[B, T, ...] and the P tokens before [B, P, ...] to [N, B, P + C, ...], zero where no token of the sequence stands."""
        if self.even:
            found = torch.cat([torch.zeros_like(carried), self._padded(x)], dim=1)
            return found.unfold(1, self.P + self.C, self.C).movedim(-1, 2).transpose(0, 1)
        found = _take(torch.cat([carried, _take(x, self._order)], dim=1), self._window)
        found = found.unflatten(1, (self.N, self.P + self.C)).transpose(0, 1)
        return found * self.before.view(*self.before.shape, *[1] * (x.dim() - 2))

    def carried(self, x: Tensor, carried: Tensor) -> Tensor:
        """The last P tokens of the present sequence [B, P, ...], zero where it has fewer."""
        if self.even:
            return torch.cat([torch.zeros_like(carried), x], dim=1)[:, self.T :]
        found = _take(torch.cat([carried, _take(x, self._order)], dim=1), self._last)
        return found * self._kept.view(*self._kept.shape, *[1] * (x.dim() - 2))

    def back(self, y: Tensor) -> Tensor:
        """[N, B, C, ...] to [B, T, ...], zeros at padding."""
        y = y.transpose(0, 1).flatten(1, 2)
        if self.even:
            return y[:, : self.T]
        place = self._slot.gather(1, (self._real.cumsum(1) - 1).clamp(min=0))
        return _take(y, place) * self._real.view(self.B, self.T, *[1] * (y.dim() - 2))

    def _padded(self, x: Tensor) -> Tensor:
        if self.T == self.N * self.C:
            return x
        return torch.cat([x, x.new_zeros(self.B, self.N * self.C - self.T, *x.shape[2:])], dim=1)


def _take(x: Tensor, place: Tensor) -> Tensor:
    """x [B, T, ...] at places [B, U]: [B, U, ...]."""
    index = place.view(*place.shape, *[1] * (x.dim() - 2)).expand(*place.shape, *x.shape[2:])
    return x.gather(1, index)
