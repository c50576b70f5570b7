"""Reformer: attention among tokens whose queries fall into the same bucket of a random hash.

Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer" (arXiv 2001.04451). Its reversible residuals are
`instar.models.reversible`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.kernels.lsh_attention import SELF, lsh_attention, unit
from instar.mixers.drawn_seed import drawn_seed
from instar.mixers.whole_sequence import WholeSequence


class Reformer(WholeSequence):
    r"""o_i = Σ_{j ∈ P(i)} softmax_j(⟨q_i, k_j⟩ / √K) v_j with shared queries and keys, k_j = q_j / |q_j|, and P from hashes.

    In each round tokens are hashed, h(x) = argmax([x R; −x R]), and sorted by (bucket, position); the order is cut into chunks
    of m. P(i) are the tokens of the same bucket in the own chunk and the one before (before the first comes the last), in any
    round; a pair that meets in several rounds counts once. A token reads itself only if P(i) has no other.

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H.
        chunk: m. rounds: of hashing. buckets: the most, even; a sequence of L tokens uses min(buckets, 2 ⌈L / m⌉), so that a
            bucket fills half a chunk, and one where L ≤ m, which is full attention. seed: of the rotations R, None for one of
            torch's generator; see `redraw`.
        bias: biases of the three projections.

    Shapes: x [B, T, D] -> [B, T, D]; no state. Raises ShapeError. O(T (D² + rounds · m (D + rounds H)) + T log T) time.
    Differs from the paper: rotations are drawn once, not at each step. There is no causal form: how chunks are cut depends on
    later tokens, so that even with a causal mask they would change earlier outputs.
    """

    rotations: Tensor

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        chunk: int = 64,
        rounds: int = 4,
        buckets: int = 64,
        seed: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or width < heads or width % heads:
            raise ShapeError(f"width must be a positive multiple of heads; received width={width}, heads={heads}.")
        if chunk < 1 or rounds < 1 or buckets < 2 or buckets % 2:
            raise ShapeError(
                f"chunk and rounds must be positive, buckets even and at least 2; received {chunk}, {rounds} and {buckets}."
            )
        self.width, self.heads, self.head_width = width, heads, width // heads
        self.chunk, self.rounds, self.buckets = chunk, rounds, buckets
        self.qk_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.register_buffer("rotations", torch.empty(rounds, heads, self.head_width, buckets // 2))
        self.redraw(drawn_seed(seed))

    @torch.no_grad()
    def redraw(self, seed: int) -> None:
        """Other hashes, which are part of the state dict. The paper draws them at each step."""
        self.rotations.copy_(torch.randn(self.rotations.shape, generator=torch.Generator().manual_seed(seed)))

    def mix(self, x: Tensor, real: Tensor) -> Tensor:
        lengths = real.sum(1)
        with torch.autocast(x.device.type, enabled=False):  # in half precision tokens would fall into other buckets
            q = self._split(self.qk_proj(x.to(self.qk_proj.weight.dtype)))
            v = self._split(self.v_proj(x.to(q.dtype)))
            y = lsh_attention(q, v, self._hash(q, lengths), lengths, self.chunk)
        return self.o_proj(y.to(x.dtype).transpose(1, 2).flatten(2))

    def alone(self, x: Tensor) -> Tensor:
        L = x.shape[0]
        q, v = self._split(self.qk_proj(x.unsqueeze(0))), self._split(self.v_proj(x.unsqueeze(0)))
        bucket = self._hash(q, torch.tensor([L], device=x.device))[0]
        meet = torch.zeros(self.heads, L, L, dtype=torch.bool)
        for r in range(self.rounds):
            for h in range(self.heads):
                own = bucket[r, h].tolist()
                order = sorted(range(L), key=lambda i: (own[i], i))
                chunks = [order[begin : begin + self.chunk] for begin in range(0, L, self.chunk)]
                for c, members in enumerate(chunks):
                    for i in members:
                        meet[h, i, [j for j in members + chunks[c - 1] if own[i] == own[j]]] = True
        scores = q @ unit(q).mT * self.head_width**-0.5
        scores = scores.masked_fill(torch.eye(L, dtype=torch.bool, device=x.device), SELF)
        y = torch.softmax(scores.masked_fill(~meet.to(x.device), -torch.inf), dim=-1) @ v
        return self.o_proj(y[0].transpose(0, 1).flatten(1))

    @torch.no_grad()
    def _hash(self, q: Tensor, lengths: Tensor) -> Tensor:
        """Buckets [S, rounds, H, L] of queries [S, H, L, K]; longer sequences use more of them."""
        turned = torch.einsum("shlk,rhkc->srhlc", q, self.rotations.to(q))
        chunks = (-(-lengths // self.chunk)).view(-1, 1, 1, 1, 1)
        unused = torch.arange(self.buckets // 2, device=q.device) >= chunks.clamp(min=1)  # a column is a pair: x R and −x R
        turned = torch.cat([turned, -turned], dim=-1).masked_fill(torch.cat([unused, unused], dim=-1), -torch.inf)
        return turned.argmax(-1) * (chunks[..., 0] > 1)

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, K]."""
        return x.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)
