"""Bigram backcopy: sequences in which attention is needed behind a few trigger tokens and has nothing to do elsewhere.

Guo et al. 2024, "Active-Dormant Attention Heads" (arXiv 2410.13835).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from instar.data.blocks import Bytes
from instar.errors import DataError


@dataclass(frozen=True)
class Backcopy:
    """A Markov chain over the bytes of a text, except that behind a trigger the token before the trigger comes again.

    Tokens are ranks of bytes by frequency, so that the triggers, the most frequent bytes, are the first ones; the last token
    of the vocabulary, BOS, begins each row and is never copied.
    """

    following: Tensor
    """float64 [V, V], p(next | present) of the chain."""
    start: Tensor
    """float64 [V], p of the first token."""
    triggers: int

    @property
    def bos(self) -> int:
        """The token that begins a row; also the number of the others."""
        return len(self.start)

    def rows(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """int64 [count, 1 + length], BOS first."""
        draw = torch.rand(length, count, 1, generator=generator, dtype=torch.float64)
        first, chain = self.start.cumsum(0), self.following.cumsum(1)
        tokens = [torch.full((count,), self.bos), _pick(first.expand(count, -1), draw[0])]
        for t in range(1, length):
            before, present = tokens[-2:]
            copies = (present < self.triggers) & (before != self.bos)
            tokens.append(torch.where(copies, before, _pick(chain[present], draw[t])))
        return torch.stack(tokens, 1)

    def nats(self, rows: Tensor) -> Tensor:
        """−log p of the tokens behind BOS [count, length] under what made them: what no model is below on average."""
        before, present, after = F.pad(rows[:, :-2], (1, 0), value=self.bos), rows[:, :-1], rows[:, 1:]
        copied = (present < self.triggers) & (before != self.bos)
        table = torch.cat([self.following, self.start.unsqueeze(0)]).log()
        return torch.where(copied, 0.0, -table[present, after])


def backcopy(sources: Iterable[Bytes], triggers: int) -> Backcopy:
    """The chain of the bytes of some texts. Raises DataError for texts of too few different bytes."""
    pairs = np.zeros((256, 256), dtype=np.int64)
    for text in sources:
        np.add.at(pairs, (text[:-1], text[1:]), 1)
    order = np.argsort(-pairs.sum(1), kind="stable")
    while len(order) and not (leads := pairs[np.ix_(order, order)].sum(1) > 0).all():
        order = order[leads]  # a byte that is last of all leads nowhere
    if len(order) < triggers + 2:
        raise DataError(f"The text has {len(order)} different bytes; {triggers} triggers need more of them.")
    counts = pairs[np.ix_(order, order)]
    following = torch.from_numpy(counts / counts.sum(1, keepdims=True))
    return Backcopy(following, torch.from_numpy(counts.sum(1) / counts.sum()), triggers)


def _pick(cumulative: Tensor, draw: Tensor) -> Tensor:
    """The index at which cumulative probabilities [N, V] pass `draw` [N, 1]: int64 [N]."""
    found = torch.searchsorted(cumulative.contiguous(), draw, right=True).squeeze(1)
    return found.clamp_max(cumulative.shape[1] - 1)
