"""The sampler of real-valued tasks: many small data sets (xs, ys), one function each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from instar.errors import DataError, ShapeError

Family = Literal["linear", "sparse_linear", "relu_network", "decision_tree"]
FAMILIES: tuple[Family, ...] = ("linear", "sparse_linear", "relu_network", "decision_tree")
_SPARSE = 3
_HIDDEN = 100
_TREE_DEPTH = 4


@dataclass(frozen=True)
class Drawn:
    """Tasks. B tasks, N examples, D features."""

    xs: Tensor
    """[B, N, D]"""
    ys: Tensor
    """[B, N], noise included."""
    truth: Tensor
    """[B, N], the functions' values."""
    weights: Tensor | None
    """[B, D] where the functions are linear."""


@dataclass(frozen=True)
class TaskSampler:
    r"""x ~ N(shift, Λ) scaled by `scale`, a function f for each task, y = f(x) + σ ε.

    Families: `linear`, f = ⟨w, x⟩ with w ~ N(0, τ²I); `sparse_linear`, the same with all but 3 coordinates zero;
    `relu_network`, f = √(2/100) Σ_j a_j relu(⟨v_j, x⟩) of 100 units, a and v normal; `decision_tree`, a full tree of depth 4
    that asks for the sign of one feature at each node and has normal values at its leaves.

    Args:
        width: D. family: of functions. noise: σ. prior: τ.
        covariance: Λ [D, D]; None is the identity. rows: real inputs [R, D] that x is drawn from, with replacement across tasks
            and without it inside one, in the place of normal ones. scale, shift: of the inputs, for tests under another
            distribution than that of training. fixed: all weights of a linear task are 1: the control of probes.

    Raises ShapeError, DataError. Sources: Akyürek et al. 2023; Garg et al. 2022 (arXiv 2208.01066) for the other families.
    """

    width: int
    family: Family = "linear"
    noise: float = 0.0
    prior: float = 1.0
    covariance: Tensor | None = None
    rows: Tensor | None = None
    scale: float = 1.0
    shift: float = 0.0
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.width < 1 or self.family not in FAMILIES or not self.noise >= 0 or not self.prior > 0:
            raise ShapeError(
                f"Tasks expect width ≥ 1, a family of {', '.join(FAMILIES)}, noise ≥ 0 and prior > 0; received {self.width}, "
                f"{self.family}, {self.noise}, {self.prior}."
            )
        if self.covariance is not None and self.covariance.shape != (self.width, self.width):
            raise ShapeError(f"covariance must be [{self.width}, {self.width}]; received {list(self.covariance.shape)}.")
        if self.rows is not None and (self.rows.dim() != 2 or self.rows.shape[1] != self.width):
            raise ShapeError(f"rows must be [R, {self.width}]; received {list(self.rows.shape)}.")

    def draw(
        self,
        tasks: int,
        examples: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        *,
        features: int | None = None,
    ) -> Drawn:
        """Tasks of `examples` pairs. Functions and inputs come from one stream, in float64.

        Inputs beyond the first `features` are 0, for a curriculum.
        """
        xs = self.inputs(tasks, examples, generator)
        if features is not None:
            xs[..., features:] = 0.0
        function, weights = self.functions(tasks, generator)
        truth = function(xs)
        noise = torch.randn(truth.shape, generator=generator, dtype=torch.float64)
        found = [xs, truth + self.noise * noise, truth]
        xs, ys, truth = (t.to(dtype) for t in found)
        return Drawn(xs, ys, truth, None if weights is None else weights.to(dtype))

    def inputs(self, tasks: int, examples: int, generator: torch.Generator) -> Tensor:
        """xs [tasks, examples, D], float64."""
        if self.rows is not None:
            if examples > len(self.rows):
                raise DataError(f"A task of {examples} examples needs as many rows; there are {len(self.rows)}.")
            order = torch.rand(tasks, len(self.rows), generator=generator).argsort(1)[:, :examples]
            xs = self.rows.double()[order]
        else:
            xs = torch.randn(tasks, examples, self.width, generator=generator, dtype=torch.float64)
            if self.covariance is not None:
                xs = xs @ torch.linalg.cholesky(self.covariance.double()).T
        return self.scale * xs + self.shift

    def functions(self, tasks: int, generator: torch.Generator) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
        """A function of xs [B, N, D] -> [B, N] for each task, and its weights if it is linear."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        D = self.width
        if self.family in ("linear", "sparse_linear"):
            w = torch.ones(tasks, D, dtype=torch.float64) if self.fixed else self.prior * normal(tasks, D)
            if self.family == "sparse_linear":
                order = torch.rand(tasks, D, generator=generator).argsort(1)
                w = w * (order < _SPARSE)
            return lambda xs: torch.einsum("bnd,bd->bn", xs, w), w
        if self.family == "relu_network":
            a, v = self.prior * normal(tasks, _HIDDEN), normal(tasks, _HIDDEN, D)
            return lambda xs: math.sqrt(2 / _HIDDEN) * torch.einsum("bnh,bh->bn", (xs @ v.mT).relu(), a), None
        asked = torch.randint(D, (tasks, 2**_TREE_DEPTH - 1), generator=generator)
        leaves = self.prior * normal(tasks, 2**_TREE_DEPTH)

        def tree(xs: Tensor) -> Tensor:
            node = torch.zeros(xs.shape[:2], dtype=torch.int64)
            for _ in range(_TREE_DEPTH):
                feature = asked.gather(1, node)
                node = 2 * node + 1 + (xs.gather(2, feature.unsqueeze(-1)).squeeze(-1) > 0).long()
            return leaves.gather(1, node - (2**_TREE_DEPTH - 1))

        return tree, None
