"""Lossless growth of a pre-norm decoder to any width, in the manner of LEMON."""

from __future__ import annotations

import math

import torch
from torch import nn

from instar.growth import plan as planning
from instar.growth import widening
from instar.growth.axes import Axis
from instar.growth.bert2bert import copied
from instar.growth.growing import Growing, Grown, growing
from instar.growth.widening import STD, Part, Widening, whole_heads
from instar.interfaces import Growth, Plan, Preserves
from instar.models.decoder import Decoder


class Lemon(Growth):
    r"""x' = s · [x; 0] with s = √(D'/D), so that RMSNorm sees the same mean square; norms are divided by s, and nothing is lost.

    New coordinates of the stream are written by rows of zeros and read by random columns, new heads and hidden units read by
    random rows and write by columns of zeros: no two are alike, and each has a gradient from the first or second step on. New
    blocks are copies that write nothing yet, each above the block that it copies.

    A plan names width (any multiple of the heads' width, with as many more heads), hidden (any number) and depth (any number).
    Preserves the function but for rounding. Optimiser state is scaled as the gradients are. Takes a `Decoder` with softmax
    attention. Raises TransformError. Differs from LEMON: see the card.
    """

    architecture = "decoder"
    sizes = ("width", "hidden", "depth")

    def __init__(self) -> None:
        pass

    @property
    def preserves(self) -> Preserves:
        return "rounding"

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: torch.optim.Optimizer | None = None, seed: int = 0) -> Grown:
        model = widening.plain(model, "lemon")
        wanted = planning.sizes(plan, widening.sizes(model), "lemon")
        to = extending(model, wanted["width"], wanted["hidden"])
        with growing(model, optimizer, method="lemon", settings={"plan": dict(plan), "seed": seed}) as work:
            std: dict[Part, float] = {"reader": STD}
            new = {place.name: widening.values(place, seed, std) for place in widening.places(model, to)}
            scale = math.sqrt(model.width / wanted["width"])
            for name, value in new.items():
                if value.dim() == 1 and "norm" in name:
                    value[model.width :] = scale
            widening.widen(model, new, to, work)
            interleave(model, wanted["depth"], work)
            widening.settle(model, wanted["width"], wanted["hidden"])
        return work.grown


def extending(model: Decoder, width: int, hidden: int) -> Widening:
    """New coordinates behind the old ones. Raises TransformError for a width that is no whole number of heads."""
    to: dict[str, Axis] = {}
    if width != model.width:
        group = whole_heads(model, width)
        queries, keys = model.width, model.width // group
        s = math.sqrt(width / model.width)
        to["stream_in"] = Axis.extended(model.width, width)
        to["stream_out"] = Axis.extended(model.width, width, s, 1 / s)
        to["norm"] = Axis.extended(model.width, width, 1 / s, s)
        # The head reads the embedding, larger by s, where they are tied.
        to["last_norm"] = Axis.extended(model.width, width, s**-2, s**2) if model.tied else to["norm"]
        to["heads_in"] = to["heads_out"] = Axis.extended(queries, width)
        to["kv_out"] = Axis.extended(keys, width // group)
    if hidden != model.hidden:
        to["hidden_in"] = to["hidden_out"] = Axis.extended(model.hidden, hidden)
    return Widening(**to)


def interleave(model: Decoder, depth: int, work: Growing) -> None:
    """Blocks that add nothing yet, spread evenly: block j of the new ones is, or copies, block ⌊j L / L'⌋."""
    old = list(model.blocks)
    blocks: list[nn.Module] = []
    last = -1
    for place in range(depth):
        source = place * len(old) // depth
        if source != last:
            blocks.append(old[source])
        else:
            block = copied(old[source], work)
            for layer in (block.mixer.o_proj, block.feed.down):  # type: ignore[union-attr]
                for parameter in layer.parameters():  # type: ignore[union-attr]
                    parameter.zero_()
            blocks.append(block)
        last = source
    model.blocks = nn.ModuleList(blocks)
