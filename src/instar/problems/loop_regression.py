"""Regression in context on a fixed representation: does a network solve least squares in one pass, and in how many loops?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.bench.fit import fit
from instar.bench.seeds import stream
from instar.catalogue import Build
from instar.errors import ShapeError
from instar.interfaces import Data, Items, Monitor, Predictor, Problem, Workload
from instar.lab.icl.curriculum import Curriculum
from instar.problems.kept import digest
from instar.problems.language import device_of
from instar.problems.reading import require_reads

_HIDDEN = 16
_PROMPTS = 256
_LAST = 4


class LoopRegressionProblem(Problem):
    r"""y_i = ⟨a, Φ(x_i)⟩ + noise, x ~ N(0, I_d), a ~ N(0, I) in each prompt; Φ is one random network for all prompts.

    Args:
        dimension: d, of x and Φ. examples: n in a prompt. noise: its standard deviation.
        curriculum: training steps until prompts grow by a feature, see `lab.icl.curriculum`; 0 is none. Loops grow with them
            where the predictor's `grow_every` says so.
        batch, width, heads, lr: of training. Φ: d → 16 → d, leaky ReLU behind each, drawn once, each feature of variance 1.

    A prompt is x_1, y_1, …, x_n, y_n, y padded with zeros to d numbers; answers are read at the places of x. Prompts of
    training are drawn anew in every step, those of validation and test (256 each) once. Raises ShapeError, DataError.
    Source: Gao et al. 2024 (arXiv 2402.13572), task 1.
    """

    accepts: ClassVar = {Predictor: "subject"}

    def __init__(
        self,
        *,
        dimension: int = 4,
        examples: int = 16,
        noise: float = 0.0,
        curriculum: int = 0,
        batch: int = 64,
        width: int = 64,
        heads: int = 4,
        lr: float = 1e-3,
    ) -> None:
        if min(dimension, batch, width, heads) < 1 or examples < 2 or noise < 0:
            raise ShapeError("loop_regression takes positive sizes, two examples or more and noise ≥ 0.")
        self.dimension, self.examples, self.noise, self.batch = dimension, examples, noise, batch
        self.width, self.heads, self.lr = width, heads, lr
        self.curriculum = Curriculum(dimension, examples, curriculum)
        self.tokens_per_step = batch * 2 * examples
        generator = stream(0, "representation")
        sizes = [(_HIDDEN, dimension), (dimension, _HIDDEN)]
        self._maps = [torch.randn(o, i, generator=generator) / i**0.5 for o, i in sizes]
        probe = self._network(torch.randn(20_000, dimension, generator=generator))
        self._mean, self._scale = probe.mean(0), probe.std(0)

    def _network(self, x: Tensor) -> Tensor:
        for weight in self._maps:
            x = F.leaky_relu(x @ weight.mT, 0.1)
        return x

    def represent(self, x: Tensor) -> Tensor:
        """Φ(x) [..., d]."""
        return (self._network(x) - self._mean) / self._scale

    def prompts(
        self, count: int, generator: torch.Generator, features: int | None = None, examples: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, 2n, d] and targets [B, 2n, 1], NaN at the places of y; of fewer features, whose rest is 0, or examples."""
        x = torch.randn(count, examples or self.examples, self.dimension, generator=generator)
        if features is not None:
            x[..., features:] = 0.0
        a = torch.randn(count, self.dimension, 1, generator=generator)
        y = self.represent(x) @ a
        y = y + self.noise * torch.randn(y.shape, generator=generator)
        tokens = torch.stack([x, F.pad(y, (0, self.dimension - 1))], 2).flatten(1, 2)
        return tokens, torch.stack([y, torch.full_like(y, float("nan"))], 2).flatten(1, 2)

    def load(self, seed: int) -> Data:
        """The same prompts of validation and test for every seed."""
        valid, test = (self.prompts(_PROMPTS, stream(0, name)) for name in ("valid", "test"))
        sha256 = digest(part.nan_to_num().numpy() for part in (*valid, *test))
        facts = {"name": "regression with representation", "item": "prompt", "test_items": _PROMPTS, "valid_items": _PROMPTS}
        return Data(None, valid, test, sha256, facts)

    def subject(self, build: Build, data: Data, seed: int) -> Predictor:
        """The predictor at this problem's sizes."""
        require_reads(build, "vectors")
        made: Predictor = build(self.width, inputs=self.dimension, outputs=1, length=2 * self.examples, heads=self.heads)
        return made

    def fit(
        self,
        subject: Any,
        train: Any,
        *,
        steps: int,
        seed: int,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Fresh prompts in every step; the loss is the predictor's own."""
        fit(
            subject,
            lambda step: self.prompts(self.batch, stream(seed, f"prompts/{step}"), *self.curriculum.sizes(step)),
            lambda model, batch: model.loss(*(part.to(device_of(model)) for part in batch)),  # type: ignore[operator]
            steps=steps,
            lr=self.lr,
            groups=subject.groups(self.lr),
            seed=seed,
            monitor=monitor,
            checkpoint=checkpoint,
        )

    def evaluate(self, subject: Any, split: tuple[Tensor, Tensor]) -> dict[str, Items]:
        """Squared error of each prompt, over all places and the last four, at half, once, twice and three times its steps."""
        subject.eval()
        found = {}
        tokens, targets = (part.to(device_of(subject)) for part in split)
        for name, steps in self._loops(subject).items():
            y, _ = subject.predict(tokens, steps=steps, generator=stream(0, "predict"))
            errors = (y - targets).square()[:, ::2, 0].double().cpu()
            found[f"error@{name}"] = Items(errors.mean(1).tolist(), [1.0] * len(errors))
            found[f"last_error@{name}"] = Items(errors[:, -_LAST:].mean(1).tolist(), [1.0] * len(errors))
        return found

    @staticmethod
    def _loops(subject: Predictor) -> dict[str, int]:
        return {"half": max(1, subject.steps // 2), "T": subject.steps, "2T": 2 * subject.steps, "3T": 3 * subject.steps}

    def workloads(self) -> Iterator[Workload]:
        """A training step."""
        yield Workload("step_seconds", self._step)

    def _step(self, subject: Any) -> Callable[[], object]:
        batch = [part.to(device_of(subject)) for part in self.prompts(self.batch, stream(0, "timing"))]

        def call() -> None:
            subject.zero_grad(set_to_none=True)
            subject.loss(*batch).backward()

        return call
