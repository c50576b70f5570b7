"""Integers of 2 to 16 bits in as few bytes: what a compressed weight is on disk and in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pack(q: Tensor, bits: int) -> Tensor:
    """Signed integers q, −2^(bits−1) ≤ q < 2^(bits−1), as bytes.

    8 bits keep their shape as int8, more become int16. Fewer become uint8 [⌈N/8⌉ · bits]: each 8 values, shifted to be
    unsigned, fill `bits` bytes, the first value in the lowest bits. O(N).
    """
    if bits >= 8:
        return q.to(torch.int8 if bits == 8 else torch.int16)
    unsigned = (q.reshape(-1).to(torch.int64) + 2 ** (bits - 1)).to(torch.int64)
    groups = F.pad(unsigned, (0, -unsigned.numel() % 8)).view(-1, 8)
    words = (groups << (bits * torch.arange(8, device=q.device))).sum(1)  # 56 bits at most
    return (words[:, None] >> (8 * torch.arange(bits, device=q.device)) & 255).to(torch.uint8).reshape(-1)


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The int8 (or int16) values of `shape` that `pack` was given."""
    if bits >= 8:
        return packed.view(shape)
    count = torch.Size(shape).numel()
    if bits == 4:  # the common case, without words of 64 bits
        values = torch.stack([packed & 15, packed >> 4], 1).view(-1)
    else:
        words = (packed.view(-1, bits).to(torch.int64) << (8 * torch.arange(bits, device=packed.device))).sum(1)
        values = (words[:, None] >> (bits * torch.arange(8, device=packed.device)) & (2**bits - 1)).to(torch.uint8).view(-1)
    return (values[:count].to(torch.int8) - 2 ** (bits - 1)).view(shape)


def packed_shape(bits: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of `pack`'s result."""
    return shape if bits >= 8 else (-(-torch.Size(shape).numel() // 8) * bits,)


def packed_dtype(bits: int) -> torch.dtype:
    """The type of `pack`'s result."""
    return torch.int16 if bits > 8 else torch.int8 if bits == 8 else torch.uint8
