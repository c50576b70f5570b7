"""Rows of numbers as 8-bit integers with a scale each: half the bytes of bfloat16, for caches of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """s = max|x| / 127 and round(x / s) of each row [..., K]: int8 [..., K] and float32 [...].

    The error of a number is at most s / 2. A row of zeros has s = 0; one with NaN or infinity has none, and is NaN then.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = x.abs().amax(-1) / LARGEST
    whole = (x / torch.where(scale == 0, 1.0, scale).unsqueeze(-1)).round().nan_to_num(0.0)
    return whole.to(torch.int8), torch.where(scale.isfinite(), scale, torch.nan).float()


def dequantise_rows(whole: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """s · integers, in float32 or better and then in `dtype`."""
    wide = torch.promote_types(dtype, torch.float32)
    return (whole.to(wide) * scale.to(wide).unsqueeze(-1)).to(dtype)
