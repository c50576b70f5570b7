"""Noisy digits: how well noise is removed at and beyond the level of training, by the number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from instar.bench.fit import fit
from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.data.images import images
from instar.errors import DataError, ShapeError
from instar.inference.diffusion import noised
from instar.interfaces import Data, Items, Monitor, Predictor, Problem, Workload
from instar.problems.kept import digest
from instar.problems.language import device_of
from instar.problems.reading import require_reads

TRAINED, BEYOND = 100, 200
"""Times t of DDPM's schedule of 1000 steps, the paper's noise 0.1 and 0.2."""
_STEPS = (1, 2, 3)
_LEAST = 100
_MOST = 300


class DenoiseProblem(Problem):
    r"""Squared error of a pixel in [−1, 1] of x_0, found from x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε.

    Args:
        data: None for scikit-learn's digits, or an `.npz` file of square images; see `data.images`.
        patch: side of a patch. batch, width, depth, heads, lr: of training, at t = 100.

    A fifth of the images (at most 300) is the test split, a tenth the validation split. Noise of evaluation is the same for all
    methods. Errors are averaged before anybody takes a logarithm: PSNR = 10 log₁₀(4 / error). Raises ShapeError, DataError,
    MissingExtraError. Source: Gladstone et al. 2025 (arXiv 2507.02092), Section 4.3, at small scale.
    """

    accepts: ClassVar = {Predictor: "subject"}

    def __init__(
        self,
        *,
        data: str | None = None,
        patch: int = 2,
        batch: int = 64,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        lr: float = 1e-3,
    ) -> None:
        if min(patch, batch, width, depth, heads) < 1:
            raise ShapeError("denoise takes positive sizes.")
        self.data, self.patch, self.batch = data, patch, batch
        self.width, self.depth, self.heads, self.lr = width, depth, heads, lr
        self.tokens_per_step = batch
        self.side = 8

    def load(self, seed: int) -> Data:
        """Images [N, S, S] in [−1, 1]; the same split for every seed."""
        found = images(self.data)
        pixels = torch.from_numpy(found.pixels).float()
        if len(pixels) < _LEAST or pixels.shape[1] != pixels.shape[2] or pixels.shape[1] % self.patch:
            raise DataError(
                f"{found.name}: denoise needs {_LEAST} square images or more whose side {self.patch} divides; received "
                f"{list(pixels.shape)}."
            )
        pixels = 2 * pixels / pixels.max().clamp_min(1.0) - 1
        order = torch.randperm(len(pixels), generator=stream(0, "split"))
        test, valid = min(_MOST, len(pixels) // 5), min(_MOST, len(pixels) // 10)
        parts = pixels[order[test + valid :]], pixels[order[test : test + valid]], pixels[order[:test]]
        facts = {"name": found.name, "item": "image", "train_items": len(parts[0]), "valid_items": valid, "test_items": test}
        return Data(*parts, digest(part.numpy() for part in parts), facts)

    def subject(self, build: Build, data: Data, seed: int) -> Predictor:
        """The predictor at this problem's sizes."""
        require_reads(build, "images")
        self.side = data.train.shape[1]
        made: Predictor = build(self.width, size=self.side, patch=self.patch, depth=self.depth, heads=self.heads)
        return made

    def fit(
        self,
        subject: Any,
        train: Tensor,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Random images with fresh noise at t = 100; the loss is the predictor's own."""

        def batch(step: int) -> tuple[Tensor, Tensor]:
            generator = stream(seed, f"data/{step}")
            clean = train[torch.randint(len(train), (self.batch,), generator=generator)]
            return noised(clean, TRAINED, torch.randn(clean.shape, generator=generator)), clean

        fit(
            subject,
            batch,
            lambda model, pair: model.loss(*(part.to(device_of(model)) for part in pair)),  # type: ignore[operator]
            steps=steps,
            lr=self.lr,
            groups=subject.groups(self.lr),
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )

    def evaluate(self, subject: Any, split: Tensor) -> dict[str, Items]:
        """Error of each image at t = 100 and 200 after 1, 2 and 3 steps."""
        subject.eval()
        found = {}
        for time in (TRAINED, BEYOND):
            x = noised(split, time, torch.randn(split.shape, generator=stream(0, f"noise/{time}"))).to(device_of(subject))
            for steps in _STEPS:
                y, _ = subject.predict(x, steps=steps, generator=stream(0, "predict"))
                errors = (y.cpu() - split).square().mean((1, 2)).double()
                found[f"error@t{time}x{steps}"] = Items(errors.tolist(), [1.0] * len(errors))
        return found

    def workloads(self) -> Iterator[Workload]:
        """A training step, and an answer with the steps of training."""
        yield Workload("step_seconds", self._step)
        yield Workload("predict_seconds", self._predict)

    def _images(self, subject: Any) -> Tensor:
        return torch.randn(self.batch, self.side, self.side, generator=stream(0, "timing")).to(device_of(subject))

    def _step(self, subject: Any) -> Callable[[], object]:
        pixels = self._images(subject)

        def call() -> None:
            subject.zero_grad(set_to_none=True)
            subject.loss(pixels, 0.5 * pixels).backward()

        return call

    def _predict(self, subject: Any) -> Callable[[], object]:
        pixels = self._images(subject)
        return lambda: subject.predict(pixels, steps=subject.steps)
