"""Diffusion transformer with DDIM sampling as a denoiser: a hundred passes an answer."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.inference.diffusion import kept, noised
from instar.inference.dit import PatchTransformer
from instar.inference.ebt_denoiser import noisy_example
from instar.interfaces import Predictor, Trace
from instar.mixers.positions import sinusoid


class DdimDenoiser(Predictor):
    r"""ε = f(x_t, t);  x_s = √ᾱ_s x̂_0 + √(1 − ᾱ_s) ε,  x̂_0 = (x_t − √(1 − ᾱ_t) ε) / √ᾱ_t, from t = `noise` to 0.

    Args:
        noise: t that an input is taken to have, and the largest of training. passes: DDIM steps of one answer, evenly spaced.
        Others as of `EbtDenoiser`. `steps` are recursions: the answer is taken for a noisy image again.

    Shapes: images [B, S, S] -> [B, S, S]. Complexity: `passes` passes a step. Raises ShapeError.
    Sources: Song, Meng, Ermon 2020 (arXiv 2010.02502), η = 0; Peebles and Xie 2023 (2212.09748).
    """

    def __init__(
        self,
        width: int = 64,
        *,
        size: int = 8,
        patch: int = 2,
        depth: int = 2,
        heads: int = 4,
        noise: int = 100,
        passes: int = 100,
    ) -> None:
        super().__init__()
        if not 1 <= passes <= noise <= 1000:
            raise ShapeError(f"DDIM takes 1 ≤ passes ≤ noise ≤ 1000; received {passes} and {noise}.")
        self.width, self.steps, self.noise, self.passes = width, 1, noise, passes
        self.transformer = PatchTransformer(size, patch, width, depth, heads, patch * patch)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def epsilon(self, x: Tensor, time: Tensor) -> Tensor:
        """The noise in images [B, S, S] at times int64 [B or 1]."""
        condition = self.time(sinusoid(time[:, None], self.width).squeeze(1).to(x.dtype))
        return self.transformer.join(self.transformer(x, condition))

    @torch.no_grad()
    def predict(self, x: Tensor, *, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Trace]:
        """Images after `steps` runs of DDIM; the first sets out from x, each further one from the answer before."""
        if steps < 0:
            raise ShapeError(f"steps is not negative; received {steps}.")
        times = torch.linspace(self.noise, 0, self.passes + 1, dtype=torch.float64).round().long().tolist()
        for _ in range(steps):
            for t, s in itertools.pairwise(times):
                share, after = (kept(n).to(x) for n in (t, s))
                e = self.epsilon(x, torch.tensor([t], device=x.device))
                clean = (x - (1 - share).sqrt() * e) / share.sqrt()
                x = after.sqrt() * clean + (1 - after).sqrt() * e
        return x, Trace(torch.full((len(x),), steps, dtype=torch.int64, device=x.device))

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Squared error of the noise, which is drawn anew on the clean target at a random time; x is not read."""
        time = torch.randint(1, self.noise + 1, (len(target),)).to(target.device)
        noise = torch.randn_like(target)
        return F.mse_loss(self.epsilon(noised(target, time.cpu(), noise), time), noise)

    def example(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random images, noisy and clean."""
        return noisy_example(self.transformer, batch, generator)
