"""The vote of all functions that agree with the examples."""

from __future__ import annotations

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.lab.icl import contexts
from instar.lab.icl_boolean import SPARSE_BITS, SPARSE_LITERALS


class ConsistentVote(InContextLearner):
    r"""ŷ = the mean of h(x) over all h of a class that agree with every example: the Bayes predictor under a uniform prior.

    Args:
        family: sparse_parity, parity or sparse_disjunction of `lab.icl_boolean`. Where no function is consistent (noise), 0.

    Inputs are read by their signs. Raises ShapeError, also for more than 2¹² functions. O(N D |class|) a task.
    """

    def __init__(self, *, family: str = "sparse_parity") -> None:
        if family not in ("sparse_parity", "parity", "sparse_disjunction"):
            raise ShapeError(f"The class must be sparse_parity, parity or sparse_disjunction; received {family}.")
        self.family = family

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """The vote."""
        contexts.fitting(xs, ys, x_query)
        sets = self._sets(xs.shape[-1]).to(xs)
        shown, asked = (self._labels(part, sets) for part in (xs, x_query))
        agree = (shown == torch.where(ys > 0, 1.0, -1.0).to(xs).unsqueeze(-1)).all(1).to(xs)
        return torch.einsum("bqh,bh->bq", asked, agree) / agree.sum(1, keepdim=True).clamp_min(1)

    def _labels(self, xs: Tensor, sets: Tensor) -> Tensor:
        ones = (xs > 0).to(xs) @ sets.T
        return 2 * ones.remainder(2) - 1 if self.family != "sparse_disjunction" else torch.where(ones > 0, 1.0, -1.0).to(xs)

    def _sets(self, D: int) -> Tensor:
        """Every function as its set of bits, [|class|, D]."""
        if D > 12 and self.family == "parity":
            raise ShapeError(f"There are 2^{D} parities; enumeration stops at 2^12.")
        if self.family == "parity":
            return ((torch.arange(2**D).unsqueeze(1) >> torch.arange(D)) & 1).float()
        k = SPARSE_BITS if self.family == "sparse_parity" else SPARSE_LITERALS
        chosen = torch.combinations(torch.arange(D), min(k, D))
        return torch.zeros(len(chosen), D).scatter_(1, chosen, 1.0)
