"""The control that does not grow: the small model, trained on."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from instar.errors import ShapeError, TransformError
from instar.growth import plan as planning
from instar.growth import widening
from instar.growth.growing import Grown, growing
from instar.growth.tokenformer import added
from instar.growth.tokenformer_decoder import KINDS, TokenFormer
from instar.interfaces import Growth, Plan, Preserves

Architecture = Literal["tokenformer", "decoder"]
Budget = Literal["steps", "flops"]


class ContinuedBase(Growth):
    """Nothing is added; a plan is read as if it were.

    Args:
        architecture: of which models it is the control. budget: in a problem, as many steps as who grows takes, or as many as
            cost the same FLOPs, which are more.

    Raises TransformError as the growth would.
    """

    grows = False

    def __init__(self, *, architecture: Architecture = "tokenformer", budget: Budget = "steps") -> None:
        if architecture not in get_args(Architecture) or budget not in get_args(Budget):
            raise ShapeError(
                f"architecture must be 'tokenformer' or 'decoder' and budget 'steps' or 'flops'; received {architecture!r} and "
                f"{budget!r}."
            )
        self.architecture, self.budget = architecture, budget

    @property
    def sizes(self) -> tuple[str, ...]:  # type: ignore[override]
        return known(self.architecture)

    @property
    def preserves(self) -> Preserves:
        return "bits"

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: torch.optim.Optimizer | None = None, seed: int = 0) -> Grown:
        targets(model, plan, self.architecture, "continued_base")
        with growing(model, optimizer, method="continued_base", settings={"plan": dict(plan), "seed": seed}) as work:
            pass
        return work.grown


def known(architecture: str) -> tuple[str, ...]:
    """What a plan may name for models of an architecture."""
    return ("n", *KINDS) if architecture == "tokenformer" else ("width", "hidden", "depth")


def targets(model: nn.Module, plan: Plan, architecture: str, method: str) -> dict[str, int]:
    """What a plan wants of a model: pairs by layer that are added, or sizes. Raises TransformError."""
    if architecture == "tokenformer":
        if not isinstance(model, TokenFormer):
            raise TransformError(f"{method} of architecture tokenformer was given a {type(model).__name__}.")
        return added(model, plan)
    decoder = widening.plain(model, method)
    wanted = planning.sizes(plan, widening.sizes(decoder), method)
    widening.whole_heads(decoder, wanted["width"])
    return wanted
