"""The noise of denoising diffusion: DDPM's linear schedule."""

from __future__ import annotations

import torch
from torch import Tensor

TIMES = 1000


def kept(time: Tensor | int) -> Tensor:
    """ᾱ_t = Π_{s ≤ t} (1 − β_s), β from 1e-4 to 2e-2 in 1000 steps; ᾱ_0 = 1, float64."""
    table = torch.cat(
        [torch.ones(1, dtype=torch.float64), (1 - torch.linspace(1e-4, 2e-2, TIMES, dtype=torch.float64)).cumprod(0)]
    )
    return table[time]


def noised(images: Tensor, time: Tensor | int, noise: Tensor) -> Tensor:
    """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε; one time for all, or one an image [B]."""
    share = kept(time).to(images)
    share = share.view(-1, 1, 1) if share.dim() else share
    return share.sqrt() * images + (1 - share).sqrt() * noise
