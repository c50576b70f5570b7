"""Linear maps from the context to the horizon, and what is taken off a window before them and put back after."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError

EPSILON = 1e-5


class MovingAverage(nn.Module):
    """The trend of x [B, L, N]: means over `kernel` rows around each, the ends repeated where rows lack (kernel // 2 each side).

    Source: Autoformer (arXiv 2106.13008). Raises ShapeError for an even kernel.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ShapeError(f"A moving average has an odd number of rows; received kernel={kernel}.")
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        side = self.kernel // 2
        long = torch.cat([x[:, :1].expand(-1, side, -1), x, x[:, -1:].expand(-1, side, -1)], dim=1)
        return F.avg_pool1d(long.mT, self.kernel, stride=1).mT


class InstanceNorm(nn.Module):
    """(x − μ) / σ over the rows of each window and series, and back; σ² = biased variance + 1e-5.

    detach: "both", as in RevIN (Kim et al. 2022), or "mean", as in the code of the Non-stationary Transformer and iTransformer.
    """

    def __init__(self, detach: str = "both") -> None:
        super().__init__()
        self.detach = detach

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, N] -> scaled, mean and deviation [B, 1, N]."""
        mean = x.mean(1, keepdim=True).detach()
        deviation = ((x - mean).square().mean(1, keepdim=True) + EPSILON).sqrt()
        if self.detach == "both":
            deviation = deviation.detach()
        return (x - mean) / deviation, mean, deviation


class DLinearNetwork(nn.Module):
    r"""ŷ = W_s (x − trend) + b_s + W_t trend + b_t, on [B, L, N] -> [B, H, N]; weights start at 1/L.

    Source: Zeng et al. 2023 (arXiv 2205.13504).
    """

    def __init__(self, context: int, horizon: int, kernel: int = 25) -> None:
        super().__init__()
        self.average = MovingAverage(kernel)
        self.seasonal, self.trend = nn.Linear(context, horizon), nn.Linear(context, horizon)
        for layer in (self.seasonal, self.trend):
            nn.init.constant_(layer.weight, 1 / context)

    def forward(self, x: Tensor) -> Tensor:
        trend = self.average(x)
        return (self.seasonal((x - trend).mT) + self.trend(trend.mT)).mT


class NLinearNetwork(nn.Module):
    """ŷ = W (x − x_L) + b + x_L, on [B, L, N] -> [B, H, N]. Source: Zeng et al. 2023 (arXiv 2205.13504)."""

    def __init__(self, context: int, horizon: int) -> None:
        super().__init__()
        self.map = nn.Linear(context, horizon)

    def forward(self, x: Tensor) -> Tensor:
        last = x[:, -1:]
        return self.map((x - last).mT).mT + last


class RLinearNetwork(nn.Module):
    """ŷ = σ (W x̃ + b) + μ with x̃ = (x − μ) / σ, on [B, L, N] -> [B, H, N]. Source: Li et al. 2023 (arXiv 2305.10721)."""

    def __init__(self, context: int, horizon: int) -> None:
        super().__init__()
        self.norm = InstanceNorm()
        self.map = nn.Linear(context, horizon)

    def forward(self, x: Tensor) -> Tensor:
        scaled, mean, deviation = self.norm(x)
        return self.map(scaled.mT).mT * deviation + mean
