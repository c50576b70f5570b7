"""What mixers that read both sides have in common: padding and packing, done once for all of them."""

from __future__ import annotations

import abc
import itertools

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.mixers.positions import count_positions


class WholeSequence(Mixer):
    """A mixer that needs its whole sequence at once: it has no state, and `forward` gives each sequence a row of its own.

    A method says what it does to rows of sequences, padded on the right, in `mix`, and to one sequence without padding in
    `alone`, the reference. Where sequences are packed, rows are as many as sequences and as long as the longest; in a compiled
    graph, whose sizes may not depend on data, as many as there could be: B · (T + 1) rows of T, so unpack them before compiling.
    """

    @abc.abstractmethod
    def mix(self, x: Tensor, real: Tensor) -> Tensor:
        """x [S, L, D], zero at padding, and real bool [S, L], True before False -> [S, L, D], finite at padding.

        A row may have no real token. L ≥ 1.
        """

    @abc.abstractmethod
    def alone(self, x: Tensor) -> Tensor:
        """One sequence [L, D] -> [L, D], L ≥ 1, written as in the paper."""

    def init_state(self, batch: int) -> None:
        """There is none: all that is mixed must be in one call."""
        return

    def forward(
        self, x: Tensor, state: None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Each sequence in a row, mixed, and put back. See `Mixer.forward`; a state is refused with a ShapeError."""
        self._no_state(state)
        B, T, D = x.shape
        if T == 0:
            return x, None
        real = torch.ones(B, T, dtype=torch.bool, device=x.device) if mask is None else mask
        if mask is None and reset is None:
            return self.mix(x, real), None
        x = x.masked_fill(~real.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        place, row, rows, length = self._rows(real, reset)
        target = (row * length + place.clamp(max=length - 1)).flatten()  # padding adds its zeros somewhere, and is read somewhere
        sequences = x.new_zeros(rows * length, D).index_add(0, target, x.flatten(0, 1)).view(rows, length, D)
        filled = torch.zeros(rows * length, dtype=torch.int64, device=x.device).index_add(
            0, target, real.to(torch.int64).flatten()
        )
        y = self.mix(sequences, filled.view(rows, length) > 0)
        return y.flatten(0, 1)[target].view(B, T, D), None

    def reference(
        self, x: Tensor, state: None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Every sequence alone, without its padding."""
        self._no_state(state)
        B, T, _ = x.shape
        y = torch.zeros_like(x)
        for b in range(B):
            starts = [] if reset is None else reset[b].nonzero().flatten().tolist()
            for begin, end in itertools.pairwise([0, *starts, T]):
                token = torch.arange(begin, end, device=x.device)
                token = token if mask is None else token[mask[b, begin:end]]
                if len(token):
                    y = y.index_put((torch.tensor(b, device=x.device), token), self.alone(x[b, token]).to(y.dtype))
        return y, None

    @staticmethod
    def _rows(real: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor, int, int]:
        """Place in its sequence and row of every token [B, T], how many rows, and how long they are."""
        B, T = real.shape
        place, _ = count_positions(torch.zeros(B, dtype=torch.int64, device=real.device), T, real, reset)
        row = torch.arange(B, device=real.device).unsqueeze(1).expand(B, T)
        if reset is not None:
            row = row * (T + 1) + reset.to(torch.int64).cumsum(1)
        if torch.compiler.is_compiling():
            return place, row, B if reset is None else B * (T + 1), T
        found, row = row.unique(return_inverse=True)
        return place, row, len(found), max(1, int((place + 1).masked_fill(~real, 0).max()))

    def _no_state(self, state: object) -> None:
        if state is not None:
            name = type(self).__name__
            raise ShapeError(
                f"{name} reads a sequence as a whole and carries no state; received one. Give it all tokens in one call."
            )
