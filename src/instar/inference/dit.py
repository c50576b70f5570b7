"""Image patches through DiT blocks, in plain arithmetic that can be differentiated twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError


class DitBlock(nn.Module):
    """x ← x + γ₁ Attention(LN(x)(1 + s₁) + b₁); x ← x + γ₂ MLP(LN(x)(1 + s₂) + b₂), norms without affine, GELU-tanh, hidden 4 D.

    The six modulations are linear in SiLU(condition). x [B, P, D], condition [B or 1, D].
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_norm = (nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(F.silu(condition)).unsqueeze(1).chunk(6, -1)
        h = self.attention_norm(x) * (1 + scale) + shift
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(h).chunk(3, -1))
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + gate * self.out(mixed.transpose(1, 2).flatten(2))
        h = self.feed_norm(x) * (1 + scale2) + shift2
        return x + gate2 * self.down(F.gelu(self.up(h), approximate="tanh"))


class PatchTransformer(nn.Module):
    """Images [B, S, S] and a condition [B or 1, D] -> so many numbers a patch [B, P, outputs].

    Args: size: S. patch: side of a patch, which divides S. Positions are a fixed sinusoid of row and column.
    Raises ShapeError. Source: Peebles and Xie 2023 (arXiv 2212.09748).
    """

    positions: Tensor

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int, outputs: int) -> None:
        super().__init__()
        if min(size, patch, width, depth, heads) < 1 or size % patch or width % (4 * heads) or width % heads:
            raise ShapeError(
                "Patches must divide the image, and 4 · heads the width; received "
                f"size {size}, patch {patch}, width {width}, depth {depth} and {heads} heads."
            )
        self.size, self.patch = size, patch
        self.enter = nn.Linear(patch * patch, width)
        self.blocks = nn.ModuleList(DitBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, outputs)
        self.register_buffer("positions", grid(size // patch, width), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, condition: Tensor) -> Tensor:
        x = self.enter(self.cut(images)) + self.positions.to(images.dtype)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(F.silu(condition)).unsqueeze(1).chunk(2, -1)
        return self.leave(self.norm(x) * (1 + scale) + shift)

    def cut(self, images: Tensor) -> Tensor:
        """[B, S, S] -> [B, P, patch²]."""
        if images.dim() != 3 or images.shape[1:] != (self.size, self.size):
            raise ShapeError(f"Expected images [B, {self.size}, {self.size}]; received {list(images.shape)}.")
        n, p = self.size // self.patch, self.patch
        return images.reshape(-1, n, p, n, p).transpose(2, 3).reshape(-1, n * n, p * p)

    def join(self, patches: Tensor) -> Tensor:
        """[B, P, patch²] -> [B, S, S]."""
        n, p = self.size // self.patch, self.patch
        return patches.reshape(-1, n, n, p, p).transpose(2, 3).reshape(-1, self.size, self.size)


def grid(side: int, width: int) -> Tensor:
    """sin and cos of row and column, [side², D]: half the channels for each."""
    frequency = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    angle = torch.arange(side)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], 1)  # [side, D / 2]
    rows, columns = axis.repeat_interleave(side, 0), axis.repeat(side, 1)
    return torch.cat([rows, columns], 1)
