"""Low-rank affine map of Drift-Adapter (Vejendla 2025, arXiv 2509.23471), solved in closed form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.compat import fitting, ridge
from instar.compat.fitting import Moments
from instar.compat.mapping import Map
from instar.errors import ShapeError
from instar.interfaces import Monitor, Pairs


class LowRankAffine(Map):
    """g(x) = U Vᵀ x + t with U [O, r] and V [D, r], which minimise mean ‖y − g(x)‖² + penalty · ‖U Vᵀ‖²_F.

    Args:
        rank: r; the paper's 64. Never more than D or O, where the map is that of `ridge`.
        penalty: as in `ridge`; None chooses it by generalised cross-validation of the full map.

    Differs from the paper: the minimum of its squared loss is computed instead of approached. It is the ridge map W brought to
    the r leading eigenvectors U of its fitted covariance W Σ (y xᵀ)ᵀ (reduced-rank regression; Izenman 1975, Mukherjee and Zhu
    2011), Vᵀ = Uᵀ W. The paper's diagonal scaling S g(x) is part of U and t.

    Time O(N D (D + O) + D³ + O³), memory O(D (D + O)) beside the pairs. Raises ShapeError for a rank below 1 or a negative
    penalty; `fit` raises DataError for fewer than 2 pairs.
    """

    closed_form = True
    down: Tensor
    up: Tensor
    bias: Tensor

    def __init__(
        self, new_dim: int, old_dim: int, *, input_dim: int | None = None, rank: int = 64, penalty: float | None = None
    ) -> None:
        super().__init__(new_dim, old_dim, input_dim=input_dim)
        if rank < 1:
            raise ShapeError(f"rank expects 1 or more; received {rank}.")
        if penalty is not None and not 0 <= penalty < float("inf"):
            raise ShapeError(f"penalty expects a number of 0 or more, or None; received {penalty}.")
        self.rank, self.penalty = rank, penalty
        kept = min(rank, new_dim, old_dim)
        self.register_buffer("down", torch.zeros(kept, new_dim))
        self.register_buffer("up", torch.zeros(old_dim, kept))
        self.register_buffer("bias", torch.zeros(old_dim))

    def fit(self, pairs: Pairs, *, steps: int | None = None, seed: int = 0, monitor: Monitor | None = None) -> None:
        """Solve. Raises DataError, ShapeError."""
        fitting.check(self, pairs)
        moments = Moments.of(pairs, centred=True)
        full, _ = ridge.solve(moments, self.penalty)
        fitted = full @ moments.yx.T  # = W (Σ + penalty) Wᵀ, symmetric up to rounding
        up = torch.linalg.eigh((fitted + fitted.T) / 2).eigenvectors[:, -self.up.shape[1] :]
        down = up.T @ full
        self.down.copy_(down)
        self.up.copy_(up)
        self.bias.copy_(moments.intercept(up @ down))

    def bring(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down), self.up, self.bias)
