"""One chunk of a memory that learns, and reads of many: `omega_rule` has the equations, `omega_gates` the coefficients.

Axes: R rows (of batch and heads), C tokens of a chunk, n = C + c - 1 tokens in sight. Weights are lists [R, M, N] (gain [R, M]).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from instar.kernels.memory_network import Layer, Pair
from instar.kernels.newton_schulz import newton_schulz
from instar.kernels.omega_gates import Gates
from instar.state import tree_map


class Memory(NamedTuple):
    """What goes from chunk to chunk."""

    anchor: list[Tensor]
    weights: list[Tensor]
    momentum: list[Tensor]
    """Empty without momentum."""
    pending: Tensor
    """[R]"""

    def where(self, rows: Tensor, new: Memory) -> Memory:
        """`new` in the chosen rows, bool [R]."""
        return tree_map(lambda a, b: torch.where(rows.view(-1, *[1] * (a.dim() - 1)), a, b), new, self)


def step(now: Memory, pairs: list[Pair], last: Gates) -> Memory:
    """After the last token of a chunk, with steps along S; the anchor as it was."""
    weights = [_scaled(last.keep, w) - _sum(last.read, pair) for w, pair in zip(now.weights, pairs, strict=True)]
    if not now.momentum:
        return now._replace(weights=weights)
    weights = [w - _scaled(last.carry, s) for w, s in zip(weights, now.momentum, strict=True)]
    return now._replace(weights=weights, momentum=_momentum(now, pairs, last))


def lagged_muon(now: Memory, pairs: list[Pair], last: Gates, steps: int, whole: bool | Tensor) -> Memory:
    """The same with one step along NS(S), taken where the chunk is whole: as long as its tokens' steps together."""
    momentum, pending = _momentum(now, pairs, last), last.keep.flatten() * now.pending + last.out.sum((-2, -1))
    weights = [_scaled(last.keep, w) for w in now.weights]
    waiting = now._replace(weights=weights, momentum=momentum, pending=pending)
    if whole is False:
        return waiting
    length = pending.view(-1, 1, 1)
    moved = [w - _scaled(length, _direction(s, steps)) for w, s in zip(weights, momentum, strict=True)]
    done = waiting._replace(weights=moved, pending=torch.zeros_like(pending))
    return waiting.where(whole, done) if isinstance(whole, Tensor) else done


def muon(now: Memory, pairs: list[Pair], gates: Gates, steps: int) -> tuple[Memory, list[Tensor]]:
    """The same with a step along NS(S) at every token; and the weights after each token, [R, C, M, N]."""
    every, momentum = [], []
    for w, s, (left, right) in zip(now.weights, now.momentum, pairs, strict=True):
        scaled = gates.into.unsqueeze(-1) * left.unsqueeze(1)  # [R, C, n, M]
        new = scaled.sum(2) if right is None else scaled.mT @ right.unsqueeze(1)
        S = _scaled(gates.hold.unsqueeze(-1), s.unsqueeze(1)) + new
        D = S if right is None else newton_schulz(S, steps)
        every.append(_scaled(gates.keep.unsqueeze(-1), w.unsqueeze(1)) - (gates.out @ D.flatten(2)).view_as(D))
        momentum.append(S[:, -1])
    return now._replace(weights=[w[:, -1] for w in every], momentum=momentum), every


def reader(memories: Sequence[Memory], pairs: Sequence[list[Pair]], gates: Gates) -> Layer:
    """Layers with the weights after each token of several chunks, [G, R, C, ·]: a W x - s S x - Σ_i P_i (x_iᵀ x) e_i."""
    weights, momentum = _stacked([m.weights for m in memories]), _stacked([m.momentum for m in memories])
    lefts = _stacked([[left for left, _ in chunk] for chunk in pairs])
    rights = _stacked([[right for _, right in chunk if right is not None] for chunk in pairs])  # a gain has none, and is the last

    def layer(i: int, x: Tensor) -> Tensor:
        if i == len(rights):
            gain = gates.keep * weights[i].unsqueeze(-2) - gates.read @ lefts[i]
            return x * (gain - gates.carry * momentum[i].unsqueeze(-2) if momentum else gain)
        out = gates.keep * (x @ weights[i].mT) - (gates.read * (x @ rights[i].mT)) @ lefts[i]
        return out - gates.carry * (x @ momentum[i].mT) if momentum else out

    return layer


def fixed(weights: Sequence[list[Tensor]]) -> Layer:
    """Layers with one set of weights for all tokens of a chunk."""
    stacked = _stacked(weights)
    return lambda i, x: x @ stacked[i].mT if stacked[i].dim() == 4 else x * stacked[i].unsqueeze(-2)


def by_token(weights: Sequence[list[Tensor]]) -> Layer:
    """Layers with weights of every token's own, [G][R, C, M, N]."""
    stacked = _stacked(weights)
    return lambda i, x: (stacked[i] @ x.unsqueeze(-1)).squeeze(-1) if stacked[i].dim() == 5 else x * stacked[i]


def _momentum(now: Memory, pairs: list[Pair], last: Gates) -> list[Tensor]:
    return [_scaled(last.hold, s) + _sum(last.into, pair) for s, pair in zip(now.momentum, pairs, strict=True)]


def _direction(S: Tensor, steps: int) -> Tensor:
    return S if S.dim() == 2 else newton_schulz(S, steps)


def _sum(weight: Tensor, pair: Pair) -> Tensor:
    """Σ_i weight_i G_i for weights [R, 1, n]."""
    left, right = pair
    return (weight @ left).squeeze(-2) if right is None else (weight * left.mT) @ right


def _scaled(factor: Tensor, w: Tensor) -> Tensor:
    """A factor [R, 1, 1], or [R, C, 1, 1], times weights of a matrix or of a gain."""
    return (factor.squeeze(-1) if factor.dim() > w.dim() else factor) * w


def _stacked(chunks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*chunks, strict=True)]
