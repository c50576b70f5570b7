"""Forecasts of each series alone, from patches of its window: what PatchTST and the mixers as encoders share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.forecasting.dropout import Dropout
from instar.forecasting.layers import Attention, EncoderLayer
from instar.forecasting.linear import InstanceNorm
from instar.mixers.positions import sinusoid


class PatchNetwork(nn.Module):
    r"""ŷ = σ · W flatten(encoder(E patches(x̃) + positions)) + μ, series by series; x̃ the window with mean 0 and deviation 1.

    The window is prolonged by its last value, `stride` times, and cut into P = ⌊(L − patch) / stride⌋ + 2 overlapping patches. E
    has no bias; positions are sinusoids that are not learnt.

    Args:
        encoder: [B, P, D] -> [B, P, D]. context: L. horizon: H. width: D. patch, stride: rows. dropout: of the embedding.

    Shapes: x [B, L, N] -> [B, H, N], any N. Source: Nie et al. 2023 (arXiv 2211.14730), in the form of the Time-Series-Library.
    Raises ShapeError.
    """

    positions: Tensor

    def __init__(
        self, encoder: nn.Module, context: int, horizon: int, *, width: int, patch: int, stride: int, dropout: float
    ) -> None:
        super().__init__()
        count = patches_of(context, patch, stride)
        self.patch, self.stride = patch, stride
        self.norm = InstanceNorm("mean")
        self.embedding = nn.Linear(patch, width, bias=False)
        self.register_buffer("positions", sinusoid(torch.arange(count), width), persistent=False)
        self.drop = Dropout(dropout)
        self.encoder = encoder
        self.head = nn.Linear(width * count, horizon)

    def forward(self, x: Tensor) -> Tensor:
        B, _, N = x.shape
        scaled, mean, deviation = self.norm(x)
        rows = scaled.mT.reshape(B * N, -1)
        rows = torch.cat([rows, rows[:, -1:].expand(-1, self.stride)], dim=1)
        z = self.embedding(rows.unfold(1, self.patch, self.stride)) + self.positions
        y = self.head(self.encoder(self.drop(z)).flatten(1)).view(B, N, -1)
        return y.mT * deviation + mean


class PatchEncoder(nn.Module):
    """Layers of attention between the patches of a series, and batch norm over the width at the end."""

    def __init__(self, width: int, depth: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(Attention(width, heads, dropout), width, hidden, dropout) for _ in range(depth))
        self.norm = nn.BatchNorm1d(width)

    def forward(self, z: Tensor) -> Tensor:
        for layer in self.layers:
            z = layer(z, layer.attention(z))  # type: ignore[operator]
        return self.norm(z.mT).mT


def patches_of(context: int, patch: int, stride: int) -> int:
    """P. Raises ShapeError for patches longer than the context."""
    if min(patch, stride) < 1 or patch > context:
        raise ShapeError(f"Patches have 1 to {context} rows (the context) and a positive stride; received {patch}, {stride}.")
    return (context - patch) // stride + 2
