"""The small network of heads that learn vectors of their own from cached features."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError


class Backbone(nn.Module):
    """x [N, I] -> MLP(x̂) [N, width] of ReLU layers, where x̂ = √I · x / ‖x‖; the first coordinates also get W₀ x̂.

    Args:
        hidden: units of a hidden layer. layers: how many there are; 0 makes the whole linear.
        start: how many coordinates W₀ reaches; 0 for none. They start as the first ones of x̂ itself (zeros where there is no
            more), so that training starts from the vectors that are read, as a network does that starts from given weights.

    Raises ShapeError.
    """

    def __init__(self, inputs: int, width: int, *, hidden: int = 512, layers: int = 1, start: int = 0) -> None:
        super().__init__()
        if hidden < 1 or layers < 0:
            raise ShapeError(f"hidden expects 1 or more and layers 0 or more; received {hidden} and {layers}.")
        widths = [inputs, *[hidden] * layers, width]
        parts: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
        for before, after in itertools.pairwise(widths[1:]):
            parts += [nn.ReLU(), nn.Linear(before, after)]
        self.mlp = nn.Sequential(*parts)
        self.skip = nn.Linear(inputs, start, bias=False) if start else None
        if self.skip is not None:
            last = parts[-1]
            assert isinstance(last, nn.Linear)
            with torch.no_grad():
                nn.init.eye_(self.skip.weight)
                last.weight[:start] = 0
                last.bias[:start] = 0

    def forward(self, x: Tensor) -> Tensor:
        """[N, I] -> [N, width]; the length of x does not matter."""
        x = F.normalize(x, dim=1) * x.shape[1] ** 0.5
        h: Tensor = self.mlp(x)
        if self.skip is None:
            return h
        first = self.skip(x)
        return torch.cat([h[:, : first.shape[1]] + first, h[:, first.shape[1] :]], 1)
