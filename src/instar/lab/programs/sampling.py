"""How a discrete choice is relaxed: every gate, predicate, attention row and table output of a Transformer Program is one."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

How = Literal["gumbel", "gumbel_hard", "softmax", "argmax"]
HOT, COLD = 3.0, 0.01
"""The temperatures at the beginning and at the end of training."""


def sample(logits: Tensor, tau: float, how: How) -> Tensor:
    r"""A point of the simplex over the last axis, one-hot where `how` says so.

    gumbel: softmax((logits + g) / τ), g_i = −log(−log u_i), u_i uniform. gumbel_hard: the one-hot vector of that, with its
    gradient (straight-through). softmax: without noise. argmax: the one-hot vector of the largest logit, the first of equal ones;
    no gradient. Noise is drawn from torch's global generator, which training seeds at every step.
    """
    if how == "argmax":
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    if how == "softmax":
        return (logits / tau).softmax(-1)
    noise = -torch.empty_like(logits).exponential_().log()
    soft = ((logits + noise) / tau).softmax(-1)
    if how == "gumbel":
        return soft
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())


def temperature(step: int, steps: int, hot: float = HOT, cold: float = COLD) -> float:
    """τ of a step, counted from 0: geometric from `hot` to `cold`, which the last step has."""
    return float(hot * (cold / hot) ** (step / max(1, steps - 1)))
