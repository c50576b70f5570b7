"""BigBird: blocks of tokens that attend to their neighbours, to two global blocks and to a few random ones.

Zaheer, Guruganesh, Dubey, Ainslie, Alberti, Ontanon, Pham, Ravula, Wang, Yang, Ahmed 2020, "Big Bird: Transformers for Longer
Sequences" (arXiv 2007.14062), in its form without extra tokens (ITC).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError
from instar.mixers.drawn_seed import drawn_seed
from instar.mixers.projecting import Projecting
from instar.mixers.whole_sequence import WholeSequence


class BigBird(Projecting, WholeSequence):
    r"""o_i = Σ_{j ∈ A(i)} softmax_j(⟨q_i, k_j⟩ / √K) v_j, where A is a set of blocks of b tokens.

    A block sees itself and its two neighbours, the first and the last block of the sequence, and r others at random, which
    differ from head to head; the first and the last block see all. The random blocks are a function of seed, head, block and
    the number of blocks alone, so that padding and packing change nothing.

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H.
        block: b. random_blocks: r, which may be 0. seed: of the random blocks, None for one of torch's generator.
        bias: biases of the four projections.

    Shapes: x [B, T, D] -> [B, T, D]; no state. Raises ShapeError. O(T (D² + (7 + r) b D)) time; nothing is T × T; the random
    choice is among (T / b)² blocks. Up to 4 + r blocks it is full attention. Differs from the paper: a last block that is not
    full is global as it is.
    """

    seed: Tensor

    def __init__(
        self, width: int, *, heads: int = 4, block: int = 64, random_blocks: int = 3, seed: int | None = None, bias: bool = False
    ) -> None:
        super().__init__(width, heads, bias)
        if block < 1 or random_blocks < 0:
            raise ShapeError(f"block must be at least 1 and random_blocks at least 0; received {block} and {random_blocks}.")
        self.block, self.random_blocks = block, random_blocks
        self.register_buffer("seed", torch.tensor(drawn_seed(seed)))

    def mix(self, x: Tensor, real: Tensor) -> Tensor:
        L = x.shape[1]
        b, n = self.block, -(-L // self.block)
        q, k, v = (F.pad(part, (0, 0, 0, n * b - L)).unflatten(2, (n, b)) for part in self.project(x))
        real = F.pad(real, (0, n * b - L)).unflatten(1, (n, b))
        last = (real.any(2).sum(1) - 1).clamp(min=0)
        index, chosen = self._table(n, last)
        keys, values = (self._take(part, index) for part in (k, v))
        found = real.unsqueeze(1).expand(-1, self.heads, -1, -1).gather(2, index.flatten(2).unsqueeze(-1).expand(-1, -1, -1, b))
        attend = (found.unflatten(2, (n, -1)) & chosen.unsqueeze(-1)).flatten(3).unsqueeze(3)
        attend = attend | ~real[:, None, :, :, None]  # what stands at padding means nothing; it must see something
        attend = attend.expand(-1, -1, -1, b, -1).flatten(0, 1)
        y = F.scaled_dot_product_attention(q.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), attn_mask=attend)
        y = y.view(q.shape)
        ends = torch.stack([torch.zeros_like(last), last], dim=1)
        rows = self._take(q, ends[:, None, None].expand(-1, self.heads, -1, -1)).squeeze(2)
        seen = real.flatten(1) | (torch.arange(n * b, device=x.device) == 0)
        top = F.scaled_dot_product_attention(rows, k.flatten(2, 3), v.flatten(2, 3), attn_mask=seen[:, None, None])
        at = torch.arange(n, device=x.device)
        for rows_of, end in zip(top.split(b, dim=2), ends.unbind(1), strict=True):
            y = torch.where((at == end.unsqueeze(1))[:, None, :, None, None], rows_of.unsqueeze(2), y)
        return self.leave(y.flatten(2, 3)[:, :, :L])

    def alone(self, x: Tensor) -> Tensor:
        L, n = x.shape[0], -(-x.shape[0] // self.block)
        of = torch.arange(L) // self.block
        attend = torch.zeros(self.heads, L, L, dtype=torch.bool)
        ranks = self._ranks(n)
        for h in range(self.heads):
            for i in range(n):
                sees = set(range(n)) if i in (0, n - 1) else {i - 1, i, i + 1, 0, n - 1}
                others = sorted((j for j in range(n) if j not in sees), key=lambda j: -int(ranks[h, i, j]))
                for j in [*sees, *others[: self.random_blocks]]:
                    attend[h] |= (of == i).unsqueeze(1) & (of == j)
        q, k, v = self.project(x.unsqueeze(0))
        scores = (q @ k.mT * self.head_width**-0.5).masked_fill(~attend.to(x.device), -torch.inf)
        return self.leave(torch.softmax(scores, dim=-1) @ v)[0]

    def _table(self, n: int, last: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks that each block reads, [S, H, n, 5 + r], and which of them count: real ones, each once."""
        S, H = last.shape[0], self.heads
        i = torch.arange(n, device=last.device)
        end = last.view(S, 1, 1, 1)
        near = (i.unsqueeze(1) + torch.arange(-1, 2, device=last.device)).expand(S, H, n, 3)
        fixed = torch.cat([torch.zeros_like(end), end], dim=-1).expand(S, H, n, 2)
        far = (fixed - i.view(1, 1, n, 1)).abs() > 1
        free = ((i.unsqueeze(1) - i).abs() > 1) & (i > 0) & (i < end)
        ranks, random = self._ranks(n).to(last.device).where(free, -1).topk(min(self.random_blocks, n), dim=-1)
        index = torch.cat([near.clamp(min=0).minimum(end), fixed, random], dim=-1)
        return index, torch.cat([(near >= 0) & (near <= end), far, ranks >= 0], dim=-1)

    def _ranks(self, n: int) -> Tensor:
        """Random numbers [H, n, n], each a function of seed, head, block and block: a larger table has this one in its corner."""
        of = self.seed.device
        h, i, j = (
            torch.arange(self.heads, device=of).view(-1, 1, 1),
            torch.arange(n, device=of).view(-1, 1),
            torch.arange(n, device=of),
        )
        word = (h * 0x9E3779B1 + i * 0x85EBCA77 + j * 0xC2B2AE3D + self.seed * 0x27D4EB2F) & 0xFFFFFFFF
        for _ in range(3):
            word = ((word ^ (word >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
        return word ^ (word >> 16)

    def _take(self, x: Tensor, index: Tensor) -> Tensor:
        """Blocks `index` [S, H, m, c] of x [S, H, n, b, K], side by side: [S, H, m, c b, K]."""
        flat = index.flatten(2)[..., None, None].expand(-1, -1, -1, *x.shape[3:])
        return x.gather(2, flat).unflatten(2, index.shape[2:]).flatten(3, 4)
