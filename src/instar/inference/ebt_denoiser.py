"""Bidirectional energy-based transformer: an image is denoised by descent on an energy, from the noisy image itself."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.inference.descending import Descending
from instar.inference.descent import spread
from instar.inference.dit import PatchTransformer
from instar.inference.step_size import StepSize
from instar.inference.thinker import Thinker
from instar.inference.training import Unrolled
from instar.interfaces import Trace


class EbtDenoiser(Descending):
    r"""y_0 = the noisy image, y_{i+1} = y_i − a ∇E(y_i), E(y) = mean over patches of a number each.

    Args:
        size, patch, depth, heads: of `PatchTransformer`, which has one learnt condition vector. steps: of training and of a plain
            call; more steps are the paper's recursion. random_steps, alpha, learn_alpha, random_alpha: as of `Ebt`, by image.
        detach, truncate, last_only: as of `Ebt`. criterion: smooth_l1, as the authors' code, or mse, as their text.

    Shapes: images [B, S, S] -> [B, S, S]. Complexity: a step is two passes, in training about five. Raises ShapeError.
    Source: Gladstone et al. 2025 (arXiv 2507.02092).
    """

    def __init__(
        self,
        width: int = 64,
        *,
        size: int = 8,
        patch: int = 2,
        depth: int = 2,
        heads: int = 4,
        steps: int = 1,
        random_steps: int = 0,
        alpha: float = 3000.0,
        learn_alpha: bool = True,
        random_alpha: float = 1.0,
        detach: bool = True,
        truncate: bool = False,
        last_only: bool = False,
        criterion: Literal["smooth_l1", "mse"] = "smooth_l1",
    ) -> None:
        super().__init__()
        if steps < 1 or random_steps < 0 or criterion not in ("smooth_l1", "mse"):
            raise ShapeError(
                f"Expected steps ≥ 1, random_steps ≥ 0 and smooth_l1 or mse; received {steps}, {random_steps}, {criterion!r}."
            )
        self.width, self.steps, self.random_steps, self.last_only, self.criterion = (
            width,
            steps,
            random_steps,
            last_only,
            criterion,
        )
        self.transformer = PatchTransformer(size, patch, width, depth, heads, 1)
        self.condition = nn.Parameter(torch.randn(1, width))
        self.step_size = StepSize(alpha, learn=learn_alpha, spread=random_alpha)
        self.unrolled = Unrolled(detach, truncate)

    def energy(self, images: Tensor) -> Tensor:
        """Energies [B] of images [B, S, S]."""
        return self.transformer(images, self.condition).mean((1, 2))

    def think(self, x: Tensor, *, generator: torch.Generator | None = None, **settings: Any) -> tuple[Tensor, Trace]:
        """Images after descent from x, and the trace; `settings` are those of `Thinker`."""
        given = {"steps": self.steps, "step_size": float(self.step_size.value.detach()), "probe": False}
        return Thinker(**{**given, **settings})(self.energy, x, generator=generator)

    def predict(self, x: Tensor, *, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Trace]:
        """Images after so many steps from the noisy ones."""
        return self.think(x, steps=steps, generator=generator)

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Error of the images after every step, mean (or of the last alone)."""
        steps = self.draw_steps()
        size = spread(self.step_size(x.shape[:1], random=self.training), x)
        states, _ = self.unrolled([self.energy] * steps, x, size)
        error = F.smooth_l1_loss if self.criterion == "smooth_l1" else F.mse_loss
        return torch.stack([error(y, target) for y in (states[-1:] if self.last_only else states)]).mean()

    def example(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random images, noisy and clean."""
        return noisy_example(self.transformer, batch, generator)


def noisy_example(transformer: PatchTransformer, batch: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Random stripes [B, S, S] with noise, and without."""
    like, size = transformer.enter.weight, transformer.size
    stripes = torch.randn(batch, 1, size, generator=generator, dtype=like.dtype, device=like.device)
    clean = stripes.expand(batch, size, size).sign() * 0.5
    noise = torch.randn(clean.shape, generator=generator, dtype=like.dtype, device=like.device)
    return clean + 0.3 * noise, clean.contiguous()
