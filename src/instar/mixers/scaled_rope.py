"""Softmax attention whose rotary positions are squeezed beyond the length that it was trained on.

Chen et al. 2023 (position interpolation, arXiv 2306.15595); Peng, Quesnelle, Fan, Shippole 2023, "YaRN: Efficient Context Window
Extension of Large Language Models" (2309.00071), with NTK-aware scaling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.eager_attention import scores
from instar.mixers.positions import Scaling, frequencies, rotate, turn
from instar.mixers.softmax import Softmax


class ScaledRope(Softmax):
    r"""o_t = Σ_{i≤t} softmax_i(g² ⟨R_s q_t, R_s k_i⟩ / √K) v_i: `Softmax` with the frequencies of a scale s, and a gain g.

    With factor = 0 the scale follows the query: s = 1 up to the trained length L, to the bit `Softmax`; 2 up to 2L, 4 up to 4L,
    and so on, for its rotation and for that of the keys it reads. So no output depends on later tokens, and a stream equals one
    call. With a factor s is that factor everywhere, as for a model that was tuned with it.

    Args:
        width, heads, kv_heads, rope_base, bias: as of `Softmax`.
        scaling: "linear" (position interpolation), "ntk" or "yarn"; see `positions.frequencies`.
        trained: L. factor: 0, or 1 and more.

    Shapes and state as of `Softmax`; with factor = 0 the cache holds keys that are not rotated, so that each call rotates all
    that it reads: O(K) more for each column. Raises ShapeError. Differs from the papers: the scale doubles by position, where
    implementations that grow it do so for the whole sequence, and leave cached keys at the scale they had.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        scaling: Scaling = "yarn",
        trained: int = 256,
        factor: float = 0.0,
        kv_heads: int = 0,
        rope_base: float = 10000.0,
        bias: bool = False,
    ) -> None:
        super().__init__(width, heads=heads, kv_heads=kv_heads, rope=True, rope_base=rope_base, bias=bias)
        if trained < 1 or (factor and not 1 <= factor < math.inf):
            raise ShapeError(f"trained must be positive, and factor 0 or at least 1; received {trained} and {factor}.")
        self.scaling, self.trained, self.factor, self.placed = scaling, trained, factor, not factor
        self._frequencies(1.0, self.q_proj.weight)  # refuses what it cannot scale

    def _rotated(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        if self.placed:
            return q, k
        return self._turned((q, k), positions, self.factor)

    def read_placed(
        self, q: Tensor, keys: Tensor, values: Tensor, attend: Tensor | None, causal: bool, where: Tensor, at: Tensor
    ) -> Tensor:
        T, C = q.shape[2], keys.shape[2]
        level = self._level(where)
        found = torch.zeros_like(q)
        for n in range(self._level_of(C - 1) + 1):  # a position is less than the number of columns
            chosen = level == n
            first, end = 0, T
            if not torch.compiler.is_compiling():
                rows = chosen.any(0).nonzero().flatten()
                if not len(rows):
                    continue
                first, end = int(rows[0]), int(rows[-1]) + 1
            part = slice(first, end)
            whole, seen = end - first == T, attend
            if causal and not whole:
                seen = torch.arange(C, device=q.device) <= torch.arange(T, device=q.device).unsqueeze(1)
            (queries,) = self._turned((q[:, :, part],), where[:, part], 2.0**n)
            (columns,) = self._turned((keys,), at, 2.0**n)
            y = self.read(queries, columns, values, None if seen is None else seen[..., part, :], causal and whole)
            if whole and not torch.compiler.is_compiling() and bool(chosen.all()):
                return y
            y = torch.where(chosen[:, None, part, None], y, found[:, :, part])
            found = torch.cat([found[:, :, :first], y, found[:, :, end:]], 2)
        return found

    def score_placed(self, q: Tensor, keys: Tensor, where: Tensor, at: Tensor) -> Tensor:
        level, found = self._level(where), q.new_zeros(*q.shape[:3], keys.shape[2])
        for n in range(self._level_of(keys.shape[2] - 1) + 1):
            (queries,), (columns,) = self._turned((q,), where, 2.0**n), self._turned((keys,), at, 2.0**n)
            found = torch.where((level == n)[:, None, :, None], scores(queries, columns), found)
        return found

    def _level(self, where: Tensor) -> Tensor:
        """n of the scale 2ⁿ at each position: the least with position < 2ⁿ L."""
        bounds = self.trained * 2 ** torch.arange(62 - self.trained.bit_length(), device=where.device)
        return torch.bucketize(where, bounds, right=True)

    def _level_of(self, position: int) -> int:
        return max(position // self.trained, 0).bit_length()

    def _turned(self, tensors: tuple[Tensor, ...], positions: Tensor, scale: float) -> tuple[Tensor, ...]:
        if scale == 1:
            return rotate(tensors, positions, self.rope_base)
        frequency, gain = self._frequencies(scale, tensors[0])
        return turn(tensors, positions, frequency, gain)

    def _frequencies(self, scale: float, like: Tensor) -> tuple[Tensor, float]:
        frequency, gain = frequencies(self.head_width, self.rope_base, self.scaling, scale, self.trained)
        return frequency.to(like.device, torch.promote_types(like.dtype, torch.float32)), gain
