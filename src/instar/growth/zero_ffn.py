"""The simplest exact growth: feed-forward units that write nothing yet."""

from __future__ import annotations

import torch
from torch import nn

from instar.growth import plan as planning
from instar.growth import widening
from instar.growth.growing import Grown, growing
from instar.growth.lemon import extending
from instar.growth.widening import STD
from instar.interfaces import Growth, Plan, Preserves


class ZeroFFN(Growth):
    """New hidden units read by random rows and write by columns of zeros: W_gate, W_up ← N(0, 0.02), W_down ← 0.

    A plan names hidden (any number). What is added to each sum is 0, so that no bit changes where the sums are made in the same
    order; here they are made by a matrix product, which may block a longer sum otherwise: equal but for rounding. New rows have
    zero moments in an optimiser and share the count of steps of the old ones. Takes a `Decoder` with softmax attention. Raises
    TransformError.
    """

    architecture = "decoder"
    sizes = ("hidden",)

    def __init__(self) -> None:
        pass

    @property
    def preserves(self) -> Preserves:
        return "rounding"

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: torch.optim.Optimizer | None = None, seed: int = 0) -> Grown:
        model = widening.plain(model, "zero_ffn")
        wanted = planning.sizes(plan, {"hidden": model.hidden}, "zero_ffn")["hidden"]
        to = extending(model, model.width, wanted)
        with growing(model, optimizer, method="zero_ffn", settings={"plan": dict(plan), "seed": seed}) as work:
            new = {place.name: widening.values(place, seed, {"reader": STD}) for place in widening.places(model, to)}
            widening.widen(model, new, to, work)
            widening.settle(model, model.width, wanted)
        return work.grown
