"""Positions: how they are counted, and the ways in which attention uses them, rotary ones and their extensions among them.

Su et al. 2021 (RoPE, arXiv 2104.09864), Chen et al. 2023 (position interpolation, 2306.15595), Peng, Quesnelle, Fan, Shippole
2023 (NTK-aware scaling and YaRN, 2309.00071), Press, Smith, Lewis 2021 (ALiBi, 2108.12409).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from instar.errors import ShapeError

Scaling = Literal["linear", "ntk", "yarn"]
SCALINGS = get_args(Scaling)


def count_positions(position: Tensor, T: int, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions [B, T] of the new tokens, and the number of real tokens [B] since the last reset after them.

    position: the number before them, int64 [B]. mask, reset: as of `Mixer.forward`.
    """
    if T == 0:
        return position.unsqueeze(1)[:, :0], position
    if mask is None:
        before = position.unsqueeze(1) + torch.arange(T, device=position.device)
        total = position + T
    else:
        counted = position.unsqueeze(1) + mask.to(torch.int64).cumsum(1)
        before, total = counted - mask.to(torch.int64), counted[:, -1]
    if reset is None:
        return before, total
    dropped = torch.where(reset, before, 0).cummax(1).values  # counts grow, so the maximum is the last reset's
    return before - dropped, total - dropped[:, -1]


def sinusoid(position: Tensor, width: int) -> Tensor:
    """sin and cos of position / 10000^(2j / D): [B, T] -> [B, T, D], float32."""
    half = (width + 1) // 2
    frequency = 10000.0 ** (-torch.arange(half, device=position.device, dtype=torch.float64) / half)
    angle = position.unsqueeze(-1) * frequency  # in float32 a stream of millions of tokens would lose its angles
    return torch.cat([angle.sin(), angle.cos()], dim=-1)[..., :width].to(torch.float32)


def rotate(
    tensors: tuple[Tensor, ...], positions: Tensor, base: float, *, least: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """RoPE (rotate-half form): turn each [B, H, T, K] tensor by its positions [B or 1, T]; angles in `least` or better.

    float32, as others have it, is off by p · 6e-8 at position p: what streams without end asks for float64.
    """
    half = tensors[0].shape[-1] // 2
    dtype = torch.promote_types(tensors[0].dtype, least)
    return turn(tensors, positions, base ** (-torch.arange(half, device=positions.device, dtype=dtype) / half))


def turn(tensors: tuple[Tensor, ...], positions: Tensor, frequency: Tensor, gain: float = 1.0) -> tuple[Tensor, ...]:
    """Turn pairs (j, j + K/2) by position · frequency_j [K/2], and stretch all by `gain`; otherwise as `rotate`."""
    half = tensors[0].shape[-1] // 2
    angle = (positions.to(frequency.dtype).unsqueeze(-1) * frequency).unsqueeze(1)
    exact = torch.promote_types(tensors[0].dtype, torch.float32)
    cos, sin = (gain * angle.cos()).to(exact), (gain * angle.sin()).to(exact)
    turned = []
    for tensor in tensors:
        a, b = tensor[..., :half], tensor[..., half:]
        turned.append(torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(tensor.dtype))
    return tuple(turned)


def frequencies(
    width: int, base: float, scaling: Scaling, scale: float, trained: int, *, alpha: float = 1.0, beta: float = 32.0
) -> tuple[Tensor, float]:
    r"""Rotary frequencies [K/2] (float64) for sequences of `scale` times the trained length, and the gain of queries and keys.

        θ_j = b^(−2j/K);   linear: θ_j / s;   ntk: b ← b · s^(K/(K−2));   yarn: θ_j (γ_j + (1 − γ_j) / s), gain 0.1 ln s + 1

    γ is 1 for pairs that turn `beta` times or more within the trained length, 0 for those that turn `alpha` times or less, and
    linear in j between. With scale = 1 all are plain RoPE. Raises ShapeError.
    """
    if scaling not in SCALINGS:
        raise ShapeError(f"scaling must be one of {', '.join(map(repr, SCALINGS))}; received {scaling!r}.")
    if width % 2 or scale < 1 or base <= (scaling == "yarn") or trained < 1 or (scaling == "ntk" and width < 4):
        raise ShapeError(
            "Scaled RoPE expects an even head width (4 or more for ntk), scale ≥ 1, a positive base (above 1 for yarn) and a "
            f"positive trained length; received {width}, {scale}, {base} and {trained}."
        )
    if scaling == "ntk":
        base = base * scale ** (width / (width - 2))
    plain = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    if scaling == "ntk":
        return plain, 1.0
    if scaling == "linear":
        return plain / scale, 1.0

    def pair(turns: float) -> float:
        return width * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(pair(beta)), 0), min(math.ceil(pair(alpha)), width - 1)
    ramp = (torch.arange(width // 2, dtype=torch.float64) - low) / (high - low if high > low else 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return plain * (kept + (1 - kept) / scale), 0.1 * math.log(scale) + 1


def slopes(heads: int) -> Tensor:
    """ALiBi's m_h = 2^(−8h/H), h = 1 … H, float64."""
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)


def columns(old: Tensor, where: Tensor) -> Tensor:
    """Positions [B, C + T] of a cache's columns and the new tokens' [B, T]: the valid ones of `old` [B, C] count from 0."""
    return torch.cat([old.to(torch.int64).cumsum(1) - 1, where], 1)
