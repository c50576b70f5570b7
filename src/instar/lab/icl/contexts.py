"""Contexts: labelled examples and queries, whose shapes must fit, and learners as they are asked."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.models.modes import evaluating


def answering(*learners: InContextLearner) -> contextlib.ExitStack:
    """Inside the block learners that are modules do not train: what they say holds no dropout."""
    stack = contextlib.ExitStack()
    for learner in learners:
        if isinstance(learner, nn.Module):
            stack.enter_context(evaluating(learner))
    return stack


def fitting(xs: Tensor, ys: Tensor, x_query: Tensor) -> None:
    """Raise ShapeError unless xs [B, N, D], ys [B, N] and x_query [B, Q, D]."""
    pairs(xs, ys)
    if x_query.dim() != 3 or x_query.shape[0] != xs.shape[0] or x_query.shape[2] != xs.shape[2]:
        raise ShapeError(
            f"Queries must be [B, Q, D] of the examples' B and D; received {list(x_query.shape)} beside {list(xs.shape)}."
        )


def pairs(xs: Tensor, ys: Tensor) -> None:
    """Raise ShapeError unless xs [B, N, D] and ys [B, N]."""
    if xs.dim() != 3 or xs.shape[:2] != ys.shape:
        raise ShapeError(f"Examples must be xs [B, N, D] and ys [B, N]; received {list(xs.shape)} and {list(ys.shape)}.")


def interleave(xs: Tensor, ys: Tensor) -> Tensor:
    """x̃_1, ỹ_1, x̃_2, … with x̃ = [0, x] and ỹ = [y, 0]: [B, 2N, 1 + D]."""
    pairs(xs, ys)
    B, N, D = xs.shape
    tokens = xs.new_zeros(B, N, 2, 1 + D)
    tokens[:, :, 0, 1:], tokens[:, :, 1, 0] = xs, ys
    return tokens.flatten(1, 2)


def signs(ys: Tensor) -> Tensor:
    """−1 or 1 for each label: the class that it stands for."""
    return torch.where(ys > 0, 1.0, -1.0).to(ys.dtype)
