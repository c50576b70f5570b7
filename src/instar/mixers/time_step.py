"""The step Δ of a selective state space and the forgetting that goes with it, as of Mamba-2 and Gated DeltaNet."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHORTEST, LONGEST = 1e-3, 1e-1


def initial_bias(heads: int) -> Tensor:
    """[H]: Δ log-uniform in [0.001, 0.1], where the projection is zero; the inverse of softplus."""
    step = torch.exp(torch.rand(heads) * math.log(LONGEST / SHORTEST) + math.log(SHORTEST))
    return step + torch.log(-torch.expm1(-step))


def initial_rate(heads: int, lowest: float) -> Tensor:
    """[H]: log A, A uniform in [lowest, 16]."""
    return torch.empty(heads).uniform_(lowest, 16.0).log()


def step_and_gate(raw: Tensor, bias: Tensor, log_rate: Tensor) -> tuple[Tensor, Tensor]:
    """Δ = softplus(raw + bias) and the log gate -A Δ, [..., H] each, in float32 at least."""
    dtype = torch.promote_types(raw.dtype, torch.float32)
    step = F.softplus(raw.to(dtype) + bias.to(dtype))
    return step, -log_rate.to(dtype).exp() * step
