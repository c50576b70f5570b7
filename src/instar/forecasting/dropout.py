"""Dropout whose coins are cheap on a processor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BITS = 16


class Dropout(nn.Dropout):
    r"""x · [u ≥ p] / (1 − p) in training, x otherwise; u uniform, from 16 random bits of torch's generator.

    On a processor torch draws 53 bits for each coin, which was a sixth of a training step of the networks here; four coins from
    each 64 bits take a third of the time. p is rounded to a multiple of 2⁻¹⁶, and the factor with it, so the mean stays x. On
    other devices, and for a p that rounds to 0 or 1, this is `torch.nn.Dropout`.

    Shapes: any -> the same. The draws differ from those of `torch.nn.Dropout` of the same seed.
    """

    def forward(self, x: Tensor) -> Tensor:
        return dropped(x, self.p, self.training)


def dropped(x: Tensor, p: float, training: bool = True) -> Tensor:
    """The same as a function."""
    steps = round(p * 2**_BITS)
    if not training or x.device.type != "cpu" or not 0 < steps < 2**_BITS:
        return F.dropout(x, p, training)
    count = x.numel()
    words = torch.empty(-(-count * _BITS // 64), dtype=torch.int64)
    bits = words.random_(-(2**63), None).view(torch.int16)[:count].view(x.shape)  # None: all 64 bits
    return x * (bits >= steps - 2 ** (_BITS - 1)).to(x.dtype).mul_(2**_BITS / (2**_BITS - steps))
