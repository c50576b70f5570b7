"""Traditional autoregressive model: the blocks of the energy-based world model, which output the next state in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.inference.norms import make_norm
from instar.inference.regression import random_walks
from instar.inference.two_stream import TwoStreamBlock
from instar.interfaces import Predictor, Trace


class Tam(Predictor):
    """f_{t+1} = W RMSNorm(blocks(f_1 … f_t)) (+ f_t where `residual`): what EBWM is compared with. `steps` changes nothing.

    Args: as of `Ebwm`; tied: the way out is the transpose of the way in. Shapes: [B, T, F] -> [B, T, F]. Raises ShapeError.
    Source: Gladstone et al. 2024 (arXiv 2406.08862).
    """

    def __init__(
        self,
        width: int = 64,
        *,
        inputs: int = 6,
        outputs: int | None = None,
        length: int = 0,
        depth: int = 2,
        heads: int = 4,
        residual: bool = False,
        tied: bool = False,
    ) -> None:
        super().__init__()
        if min(width, inputs, depth, heads) < 1 or outputs not in (None, inputs):
            raise ShapeError("Tam takes sizes of at least 1, and predicts states of its inputs.")
        self.width, self.inputs, self.steps, self.residual = width, inputs, 1, residual
        self.project = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(TwoStreamBlock(width, heads, width) for _ in range(depth))
        self.norm = make_norm("rms", width)
        self.leave = None if tied else nn.Linear(width, inputs, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)

    def answer(self, x: Tensor) -> Tensor:
        """Next states, with their graph."""
        if x.dim() != 3 or x.shape[2] != self.inputs:
            raise ShapeError(f"Expected states [B, T, {self.inputs}]; received {list(x.shape)}.")
        h, positions = self.project(x), torch.arange(x.shape[1], device=x.device)[None]
        for block in self.blocks:
            h, _ = block.observe(h, positions, None, None)  # type: ignore[operator]
        y = self.norm(h) @ self.project.weight if self.leave is None else self.leave(self.norm(h))
        return x + y if self.residual else y

    @torch.no_grad()
    def predict(self, x: Tensor, *, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Trace]:
        """Next states, whatever `steps` is: nothing iterates."""
        if steps < 0:
            raise ShapeError(f"steps is not negative; received {steps}.")
        return self.answer(x), Trace(torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device))

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Smooth L1 over counted channels."""
        y, real = self.answer(x), ~target.isnan()
        return F.smooth_l1_loss(y[real], target[real])

    def example(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random walks and their next states."""
        return random_walks(self.project.weight, batch, generator)
