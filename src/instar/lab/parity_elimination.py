"""The exact learner of parities: linear equations over GF(2)."""

from __future__ import annotations

import torch
from torch import Tensor

from instar.interfaces import InContextLearner
from instar.lab.icl import contexts


class ParityElimination(InContextLearner):
    r"""A x = y over GF(2), by Gauss–Jordan elimination; ŷ of an input that the rows span, 0 of any other.

    An input is a row of bits (x > 0), and y = 1 where the bits of the hidden subset are odd in number. An input outside the span
    is as often 1 as −1 among all parities that agree with the examples, so this is the Bayes predictor of `parity` under a
    uniform prior, without enumerating 2^D subsets (`consistent_vote` does). Where labels contradict each other, all are 0.

    xs [B, N, D], ys [B, N], x_query [B, Q, D] -> [B, Q] in {−1, 0, 1}. Raises ShapeError. O((N + Q) N D) a task at most.
    Source: Bhattamishra et al. 2024, section 2, which names the algorithm.
    """

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """−1, 0 or 1."""
        contexts.fitting(xs, ys, x_query)
        D = xs.shape[-1]
        rows = torch.cat([xs > 0, (ys > 0).unsqueeze(-1)], -1)
        asked = torch.cat([x_query > 0, torch.zeros_like(x_query[..., :1], dtype=torch.bool)], -1)
        free = torch.ones_like(ys, dtype=torch.bool)  # rows that lead no column yet
        tasks = torch.arange(len(xs), device=xs.device)
        for column in range(D if xs.shape[1] else 0):
            leads = rows[..., column] & free
            at, found = leads.int().argmax(1), leads.any(1)
            pivot = rows[tasks, at] & found.unsqueeze(1)
            own = torch.arange(rows.shape[1], device=xs.device) == at.unsqueeze(1)
            rows = rows ^ ((rows[..., column] & ~own).unsqueeze(-1) & pivot.unsqueeze(1))
            asked = asked ^ (asked[..., column].unsqueeze(-1) & pivot.unsqueeze(1))
            free = free & ~(own & found.unsqueeze(1))
        contradicted = (rows[..., -1] & ~rows[..., :-1].any(-1)).any(1, keepdim=True)
        known = ~asked[..., :-1].any(-1) & ~contradicted
        return torch.where(known, torch.where(asked[..., -1], 1.0, -1.0), 0.0).to(xs.dtype)
