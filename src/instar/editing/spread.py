"""From the shift that is wanted at the top to the change of each weight: shares over layers, and the closed form of a change."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from instar.errors import EditError, ShapeError

Spread = Literal["sqrt", "linear", "last"]


def share(spread: Spread, place: int, count: int) -> float:
    """Which part of what is still missing the layer at `place` (from 0) of `count` layers writes; the last writes all.

    sqrt: 1/√(count − place), PMET. linear: 1/(count − place), MEMIT. last: only the last layer writes.
    """
    left = count - place
    if spread == "sqrt":
        return float(left**-0.5)
    if spread == "linear":
        return 1 / left
    if spread == "last":
        return float(left == 1)
    raise ShapeError(f"spread expects sqrt, linear or last; received {spread!r}.")


def solve(C: Tensor, K: Tensor, R: Tensor, penalty: float) -> Tensor:
    r"""The change Δ [out, in] that minimises penalty · tr(Δ C Δᵀ) + ‖Δ K − R‖²:  Δ = R Kᵀ (penalty C + K Kᵀ)⁻¹.

    Args:
        C: second moment of keys [in, in]. K: keys [in, N]. R: wanted changes of values [out, N]. penalty: more than 0.

    float64. With N < in by Woodbury, Δ = R (I + Kᵀ X)⁻¹ Xᵀ, X = (penalty C)⁻¹ K: one Cholesky of C, O(in³/3 + in² N); else
    `direct`. Raises EditError where C is singular.
    """
    if not penalty > 0:
        raise ShapeError(f"The weight of C expects a number above 0; received {penalty}.")
    C, K, R = C.double(), K.double(), R.double()
    if K.shape[1] >= K.shape[0]:
        return direct(C, K, R, penalty)
    X = torch.cholesky_solve(K, _factor(C)) / penalty
    inner = torch.eye(K.shape[1], dtype=C.dtype, device=C.device) + K.T @ X
    return R @ torch.linalg.solve(inner, X.T)


def direct(C: Tensor, K: Tensor, R: Tensor, penalty: float) -> Tensor:
    """`solve` without Woodbury, O(in³/3 + in² (N + out))."""
    C, K, R = C.double(), K.double(), R.double()
    return torch.cholesky_solve(K @ R.T, _factor(penalty * C + K @ K.T)).T


def _factor(matrix: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise EditError("The second moment C of a layer is singular: it was taken from too few or too uniform texts. Give more.")
    return factor
