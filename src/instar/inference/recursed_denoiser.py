"""A feed-forward denoiser whose output can be fed back: the comparison that the paper of EBT leaves out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.inference.dit import PatchTransformer
from instar.inference.ebt_denoiser import noisy_example
from instar.interfaces import Predictor, Trace


class RecursedDenoiser(Predictor):
    """y ← y + f(y), once in training, `steps` times when it is asked.

    Args: as of `EbtDenoiser`. Shapes: images [B, S, S] -> [B, S, S]. Complexity: a step is one pass. Raises ShapeError.
    """

    def __init__(self, width: int = 64, *, size: int = 8, patch: int = 2, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.width, self.steps = width, 1
        self.transformer = PatchTransformer(size, patch, width, depth, heads, patch * patch)
        self.condition = nn.Parameter(torch.randn(1, width))

    def denoise(self, x: Tensor) -> Tensor:
        """One pass, with its graph."""
        return x + self.transformer.join(self.transformer(x, self.condition))

    @torch.no_grad()
    def predict(self, x: Tensor, *, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Trace]:
        """The output, fed back until it was denoised `steps` times."""
        if steps < 0:
            raise ShapeError(f"steps is not negative; received {steps}.")
        for _ in range(steps):
            x = self.denoise(x)
        return x, Trace(torch.full((len(x),), steps, dtype=torch.int64, device=x.device))

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Smooth L1 of one pass."""
        return F.smooth_l1_loss(self.denoise(x), target)

    def example(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random images, noisy and clean."""
        return noisy_example(self.transformer, batch, generator)
