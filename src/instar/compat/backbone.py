"""The small network of heads that learn vectors of their own from cached features."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.compat.training import Recipe
from instar.errors import ShapeError

RECIPE = Recipe(batch=512, lr=3e-3, weight_decay=2.0**-15, fewest=300, most_items=500_000)
"""How heads learn from cached features. BT²'s authors train encoders with batches of 128 at a rate of 0.001; four times the batch
at three times the rate gives the same quality in half the time here."""


class Backbone(nn.Module):
    """x [N, I] -> MLP(x̂) + (x̂[:start], 0) [N, width], ReLU between layers, x̂ = √I · x / ‖x‖: the length of x does not matter.

    Args:
        hidden: units of a hidden layer. layers: how many there are; 0 makes the whole linear.
        start: to how many of the first coordinates those of x̂ are added, as far as there are; 0 for none. There the MLP starts at
            0, so that training starts from the vectors that are read, as a network does that starts from given weights.

    Raises ShapeError.
    """

    def __init__(self, inputs: int, width: int, *, hidden: int = 512, layers: int = 1, start: int = 0) -> None:
        super().__init__()
        if hidden < 1 or layers < 0:
            raise ShapeError(f"hidden expects 1 or more and layers 0 or more; received {hidden} and {layers}.")
        self.start = min(start, inputs)
        widths = [inputs, *[hidden] * layers, width]
        parts: list[nn.Module] = []
        for before, after in itertools.pairwise(widths[:-1]):
            parts += [nn.Linear(before, after), nn.ReLU()]
        last = nn.Linear(widths[-2], width)
        with torch.no_grad():
            last.weight[: self.start] = 0
            last.bias[: self.start] = 0
        self.mlp = nn.Sequential(*parts, last)

    def forward(self, x: Tensor) -> Tensor:
        """[N, I] -> [N, width]"""
        x = F.normalize(x, dim=1) * x.shape[1] ** 0.5
        h: Tensor = self.mlp(x)
        if not self.start:
            return h
        return torch.cat([h[:, : self.start] + x[:, : self.start], h[:, self.start :]], 1)
