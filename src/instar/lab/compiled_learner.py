"""Textbook learners as transformers whose weights are written down: a pass of gradient descent, and ridge regression."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import InContextLearner
from instar.lab.icl import contexts
from instar.lab.icl.construction import PAD, ConstructedLayer, ConstructedTransformer, Map, Slots


class CompiledLearner(nn.Module, InContextLearner):
    r"""A transformer over x_1, y_1, …, x that is a learner by its weights.

    `gradient_descent`: w ← w - 2α (x_i (⟨w, x_i⟩ - y_i) + λw), one example after another, in two layers each; 5D + O(1) slots.
    `ridge`: A⁻¹ ← A⁻¹ - u uᵀ/(1 + ⟨u, x_i⟩) with u = A⁻¹ x_i from A⁻¹ = I/λ (Sherman and Morrison), m ← m + y_i x_i, w = A⁻¹ m,
    in four layers for each example; 3D² + O(D) slots.

    Args:
        width: D. examples: N, the most of a context. algorithm: one of the two. lr: α. ridge: λ, > 0 for `ridge`.

    Its parameters are float64, whatever the inputs are. Errors are about 1e-5 at λ = 0.1 and less with a larger ridge:
    products are exact to ε² times the square of what is multiplied. Raises ShapeError. O(N · T (D² + T)) a task.
    Differs from the paper: the layers that repeat are one layer, used again; u = v as A is symmetric.
    Source: Akyürek et al. 2023, theorems 1 and 2.
    """

    def __init__(
        self,
        width: int,
        *,
        examples: int,
        algorithm: Literal["gradient_descent", "ridge"] = "ridge",
        lr: float = 0.05,
        ridge: float = 0.5,
    ) -> None:
        super().__init__()
        if width < 1 or examples < 1 or algorithm not in ("gradient_descent", "ridge"):
            raise ShapeError(f"Expected width, examples ≥ 1 and a known algorithm; received {width}, {examples}, {algorithm!r}.")
        if not (lr > 0 and ridge >= 0) or (algorithm == "ridge" and ridge == 0):
            raise ShapeError(f"Expected lr > 0, and ridge > 0 for the algorithm 'ridge'; received {lr} and {ridge}.")
        self.width, self.examples = width, examples
        descends = algorithm == "gradient_descent"
        self.transformer = descending(width, examples, lr, ridge) if descends else inverting(width, examples, ridge)

    def prefixes(self, xs: Tensor, ys: Tensor) -> Tensor:
        """One pass."""
        tokens = contexts.interleave(xs, ys).double()
        if xs.shape[2] != self.width:
            raise ShapeError(f"Made for inputs of width {self.width}; received {list(xs.shape)}.")
        return self.transformer(tokens)[:, ::2].to(xs.dtype)

    def predict(self, xs: Tensor, ys: Tensor, x_query: Tensor) -> Tensor:
        """A sequence for each query."""
        contexts.fitting(xs, ys, x_query)
        B, N, D = xs.shape
        Q = x_query.shape[1]
        inputs = torch.cat([xs.unsqueeze(1).expand(B, Q, N, D), x_query.unsqueeze(2)], 2).flatten(0, 1)
        labels = torch.cat([ys, ys.new_zeros(B, 1)], 1).unsqueeze(1).expand(B, Q, N + 1).flatten(0, 1)
        return self.prefixes(inputs, labels)[:, -1].unflatten(0, (B, Q))


def descending(D: int, examples: int, lr: float, ridge: float) -> ConstructedTransformer:
    """A pass of gradient descent. Slots: x, z (the input beside its label), w, p (products), r (residual), g (gradient)."""
    x, z, w, p, g = ([f"{name}{i}" for i in range(D)] for name in "xzwpg")
    slots = Slots(["y", *x, *z, *w, *p, "r", *g, "out"])
    angle = math.pi / (2 * examples + 3)
    after: Map = {w[i]: {w[i]: 1 - 2 * lr * ridge, g[i]: -2 * lr} for i in range(D)}
    clear = {name: {name: -1.0} for name in (*w, *p)}
    beside = ConstructedLayer(slots, angle, past={z[i]: {x[i]: 1.0} for i in range(D)})
    read = ConstructedLayer(slots, angle, own=clear, past=after, back=2, products=[(p[i], w[i], z[i]) for i in range(D)])
    residual: Map = {"r": {"r": -1.0, "y": -1.0, **dict.fromkeys(p, 1.0)}, **{name: {name: -1.0} for name in g}}
    step = ConstructedLayer(slots, angle, own=residual, products=[(g[i], z[i], "r") for i in range(D)])
    ask = ConstructedLayer(slots, angle, own=clear, past=after, back=1, products=[(p[i], w[i], x[i]) for i in range(D)])
    say = ConstructedLayer(slots, angle, own={"out": dict.fromkeys(p, 1.0)})
    layers = [beside, *[read, step] * examples, ask, say]
    return ConstructedTransformer(slots, layers, tokens=2 * examples + 2, angle=angle, x=x, y="y", out="out", start={})


def inverting(D: int, examples: int, ridge: float) -> ConstructedTransformer:
    """Ridge regression. Slots: A (the inverse), P (products), E (what is taken from A), m (moment), f (what is added to it),
    u, s,
    q (u over the denominator), and x, z as above."""
    x, z, m, f, u, s, q = ([f"{name}{i}" for i in range(D)] for name in "xzmfusq")
    A, P, E = ([[f"{name}{i},{j}" for j in range(D)] for i in range(D)] for name in "APE")
    every = [(i, j) for i in range(D) for j in range(D)]

    def flat(M: list[list[str]]) -> list[str]:
        return [name for row in M for name in row]

    def clear(*names: str) -> dict[str, dict[str, float]]:
        return {name: {name: -1.0} for name in names}

    slots = Slots(["y", *x, *z, *m, *f, *u, *s, *q, *flat(A), *flat(P), *flat(E), "sum", "out"])
    angle = math.pi / (2 * examples + 3)
    after: Map = {
        **{A[i][j]: {A[i][j]: 1.0, E[i][j]: -1.0} for i, j in every},
        **{m[i]: {m[i]: 1.0, f[i]: 1.0} for i in range(D)},
    }
    beside = ConstructedLayer(
        slots, angle, past={z[i]: {x[i]: 1.0} for i in range(D)}, products=[(f[i], z[i], "y") for i in range(D)]
    )
    applied = [(P[i][j], A[i][j], z[j]) for i, j in every]
    read = ConstructedLayer(slots, angle, own=clear(*flat(A), *m, *flat(P)), past=after, back=2, products=applied)
    sums: Map = {u[i]: {u[i]: -1.0, **dict.fromkeys(P[i], 1.0)} for i in range(D)}
    dots = ConstructedLayer(slots, angle, own={**sums, **clear(*s)}, products=[(s[i], u[i], z[i]) for i in range(D)])
    # The pads become ±N (1 + Σ s), so that LayerNorm divides by it.
    wide: Map = {"pad+": dict.fromkeys(s, PAD), "pad-": dict.fromkeys(s, -PAD), "sum": dict.fromkeys(s, 1.0)}
    divide = ConstructedLayer(slots, angle, own={**wide, **clear(*q)}, copies={q[i]: u[i] for i in range(D)})
    narrow: Map = {"pad+": {"sum": -PAD}, "pad-": {"sum": PAD}, **clear("sum", *flat(E))}
    outer = ConstructedLayer(slots, angle, own=narrow, products=[(E[i][j], q[i], u[j]) for i, j in every])
    ask = ConstructedLayer(
        slots,
        angle,
        own=clear(*flat(A), *m, *flat(P)),
        past=after,
        back=1,
        products=[(P[i][j], A[i][j], m[j]) for i, j in every],
    )
    weigh = ConstructedLayer(slots, angle, own={**sums, **clear(*s)}, products=[(s[i], u[i], x[i]) for i in range(D)])
    say = ConstructedLayer(slots, angle, own={"out": dict.fromkeys(s, 1.0)})
    layers = [beside, *[read, dots, divide, outer] * examples, ask, weigh, say]
    start = {A[i][i]: 1 / ridge for i in range(D)}
    return ConstructedTransformer(slots, layers, tokens=2 * examples + 2, angle=angle, x=x, y="y", out="out", start=start)
