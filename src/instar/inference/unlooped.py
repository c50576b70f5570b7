"""An ordinary stack of blocks as a predictor: the baseline of loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.inference.gpt2_block import Init, initialise, stack
from instar.inference.regression import random_means, squared_error
from instar.interfaces import Predictor, Trace


class Unlooped(Predictor):
    """An ordinary transformer with weights of its own in every layer: what a loop is compared with. `steps` changes nothing.

    Args: as of `Looped`; depth: layers. Shapes: x [B, T, F] -> y [B, T, O]. Raises ShapeError.
    """

    def __init__(
        self,
        width: int = 64,
        *,
        inputs: int = 5,
        outputs: int = 1,
        length: int = 64,
        heads: int = 4,
        depth: int = 3,
        causal: bool = True,
        init: Init = "fan_in",
    ) -> None:
        super().__init__()
        if min(width, inputs, outputs, length, heads, depth) < 1:
            raise ShapeError("A stack takes sizes of at least 1.")
        self.width, self.inputs, self.outputs, self.length, self.steps = width, inputs, outputs, length, 1
        self.read_in, self.read_out = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks, self.norm = stack(width, depth, heads, causal=causal), nn.LayerNorm(width)
        initialise(self, init, depth)

    def answer(self, x: Tensor) -> Tensor:
        """y [B, T, O], with its graph."""
        if x.dim() != 3 or x.shape[2] != self.inputs or x.shape[1] > self.length:
            raise ShapeError(f"Expected x [B, T ≤ {self.length}, {self.inputs}]; received {list(x.shape)}.")
        return self.read_out(self.norm(self.blocks(self.read_in(x) + self.positions[: x.shape[1]])))

    @torch.no_grad()
    def predict(self, x: Tensor, *, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Trace]:
        """y, whatever `steps` is: nothing iterates."""
        if steps < 0:
            raise ShapeError(f"steps is not negative; received {steps}.")
        return self.answer(x), Trace(torch.zeros(len(x), dtype=torch.int64, device=x.device))

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Squared error over all counted positions."""
        return squared_error(self.answer(x), target)

    def example(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random vectors, and the mean of each position's channels as its target."""
        return random_means(self.read_in.weight, self.outputs, batch, generator)
