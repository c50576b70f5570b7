"""Longformer: a sliding window for all tokens, and a few global tokens that see all and are seen by all.

Beltagy, Peters, Cohan 2020, "Longformer: The Long-Document Transformer" (arXiv 2004.05150).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.errors import ShapeError
from instar.kernels.window_attention import window_attention
from instar.mixers.projecting import Projecting
from instar.mixers.whole_sequence import WholeSequence


class Longformer(Projecting, WholeSequence):
    r"""o_i = Σ_{j ∈ W(i)} softmax_j(⟨q_i, k_j⟩ / √K) v_j with W(i) = {j : |i − j| ≤ w/2} ∪ G, and for i ∈ G all tokens.

    G are the first tokens of each sequence (as [CLS] is). Their rows have projections of their own, W_q', W_k', W_v', which
    start as copies; other rows see them through the projections of the window.

    Args:
        width: D, a multiple of heads. heads: H, each of width K = D / H.
        window: w, even: half of it on each side. global_tokens: |G|, which may be 0.
        bias: biases of the projections.

    Shapes: x [B, T, D] -> [B, T, D]; no state. Raises ShapeError. O(T (D² + (w + |G|) D)) time; nothing is T × T.
    Differs from the paper: no dilation (which it uses in character models only); global tokens are the first ones, not chosen.
    """

    def __init__(self, width: int, *, heads: int = 4, window: int = 64, global_tokens: int = 1, bias: bool = False) -> None:
        super().__init__(width, heads, bias)
        if window < 2 or window % 2 or global_tokens < 0:
            raise ShapeError(
                f"window must be even and at least 2, global_tokens at least 0; received {window} and {global_tokens}."
            )
        self.window, self.global_tokens = window, global_tokens
        if global_tokens:
            self.q_global, self.k_global, self.v_global = (copy.deepcopy(p) for p in (self.q_proj, self.k_proj, self.v_proj))

    def mix(self, x: Tensor, real: Tensor) -> Tensor:
        q, k, v = self.project(x)
        g = min(self.global_tokens, x.shape[1])
        place = torch.arange(x.shape[1], device=x.device)
        # The window keeps global tokens apart, which all rows see anyway: none is counted twice.
        names = (place < g).to(torch.int64).masked_fill(~real, -1)
        shared = (k[:, :, :g], v[:, :, :g], real[:, :g]) if g else None
        y = window_attention(q, k, v, names, before=self.window // 2, after=self.window // 2, shared=shared)
        if g:
            rows = self.split(self.q_global(x[:, :g]))
            seen = real | (place == 0)  # a row without any token still sees something, for the sake of finite numbers
            keys, values = self.split(self.k_global(x)), self.split(self.v_global(x))
            top = F.scaled_dot_product_attention(rows, keys, values, attn_mask=seen[:, None, None])
            y = torch.cat([top, y[:, :, g:]], dim=2)
        return self.leave(y)

    def alone(self, x: Tensor) -> Tensor:
        L, g = x.shape[0], self.global_tokens
        x = x.unsqueeze(0)
        q, k, v = self.project(x)
        place = torch.arange(L, device=x.device)
        near = ((place.unsqueeze(1) - place).abs() <= self.window // 2) | (place < g)
        y = torch.softmax((q @ k.mT * self.head_width**-0.5).masked_fill(~near, -torch.inf), dim=-1) @ v
        if g:
            q, k, v = (self.split(p(x)) for p in (self.q_global, self.k_global, self.v_global))
            every = torch.softmax(q @ k.mT * self.head_width**-0.5, dim=-1) @ v
            y = torch.where((place < g).unsqueeze(1), every, y)
        return self.leave(y)[0]
