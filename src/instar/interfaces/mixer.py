"""Models that mix tokens."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from torch import Tensor, nn

from instar.state import State

if TYPE_CHECKING:
    pass


class Mixer(nn.Module, abc.ABC):
    """A token mixer: the part of a block that moves information between positions.

    `Mixer(width, *, heads=…, **knobs)`. One call form for training, prefill, streaming and decoding.
    """

    width: int
    heads: int

    @abc.abstractmethod
    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mix `x` [B, T, D] and return the output [B, T, D] and the state after the last token.

        state: what an earlier call returned; None is `init_state(B)`. It is a value: it is never changed, and continuing
            from an older one gives what it gave before.
        mask: bool [B, T], True where the token is real. Others leave the state as it is and reach no real output; their own
            outputs are finite and mean nothing. Left, right and inner padding are all allowed.
        reset: bool [B, T], True where a new sequence starts (packed rows): the state is dropped before that token.
        B is at least 1; T may be 0 or 1: one token is a call with T = 1. A whole sequence, any split of it, and token by token
        give the same outputs, state and gradients (a card's tag declares exceptions).
        """

    @abc.abstractmethod
    def reference(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The same function, written to be read beside the paper: the oracle of `forward`, values and gradients."""

    @abc.abstractmethod
    def init_state(self, batch: int) -> State:
        """The state before the first token, on the module's device: a tree of tensors, batch first."""
