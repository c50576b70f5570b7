"""bert2BERT: wider by copies or by rows of the next layer, deeper by stacking."""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.growth import plan as planning
from instar.growth import widening
from instar.growth.duplicating import duplicating, new_rows
from instar.growth.growing import Growing, Grown, growing
from instar.growth.widening import Place
from instar.interfaces import Growth, Plan, Preserves
from instar.models.decoder import Decoder

Expansion = Literal["aki", "fpi"]


class Bert2Bert(Growth):
    """Width by FPI (copies, which preserve the function) or AKI (new rows are those of the layer above), depth by stacking.

    Args:
        expansion: fpi, or aki, which takes the expanded rows of block l + 1 as the new rows of block l (the last block copies its
            own). AKI does not preserve the function; the paper finds that it trains better, since no two units are equal.

    A plan names width (a multiple, with equally many more heads), hidden (any number) and depth (any number: block i is block
    i mod L; no longer the same function). New blocks begin without state in the optimiser. Takes a `Decoder` with softmax
    attention. Raises TransformError.
    """

    architecture = "decoder"
    sizes = ("width", "hidden", "depth")

    def __init__(self, *, expansion: Expansion = "aki") -> None:
        if expansion not in get_args(Expansion):
            raise ShapeError(f"expansion must be 'aki' or 'fpi'; received {expansion!r}.")
        self.expansion = expansion

    @property
    def preserves(self) -> Preserves:
        return "nothing"

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: torch.optim.Optimizer | None = None, seed: int = 0) -> Grown:
        model = widening.plain(model, "bert2bert")
        wanted = planning.sizes(plan, widening.sizes(model), "bert2bert")
        to = duplicating(model, wanted["width"], wanted["hidden"], seed)
        settings = {"expansion": self.expansion, "plan": dict(plan), "seed": seed}
        with growing(model, optimizer, method="bert2bert", settings=settings) as work:
            every = {place.name: place for place in widening.places(model, to)}
            new = {name: widening.values(place, seed, {}) for name, place in every.items()}
            if self.expansion == "aki":
                new |= {name: mixed for name, place in every.items() if (mixed := _advanced(place, new)) is not None}
            widening.widen(model, new, to, work)
            stack(model, wanted["depth"], work)
            widening.settle(model, wanted["width"], wanted["hidden"])
        return work.grown


def stack(model: Decoder, depth: int, work: Growing) -> None:
    """Copies of the blocks above them, the first again after the last."""
    old = list(model.blocks)
    model.blocks = nn.ModuleList(old + [copied(old[i % len(old)], work) for i in range(len(old), depth)])


def copied(block: nn.Module, work: Growing) -> nn.Module:
    """A copy whose parameters an optimiser trains beside those of the block."""
    new = copy.deepcopy(block)
    for fresh, beside in zip(new.parameters(), block.parameters(), strict=True):
        fresh.grad = None
        work.kept.append(fresh, [beside])
    return new


def _advanced(place: Place, new: dict[str, Tensor]) -> Tensor | None:
    """The matrix with the expanded rows of the same matrix a block above; None where there is none, or no new row."""
    parts = place.name.split(".")
    rows = new_rows(place.axes[0], len(place.parameter))
    if parts[0] != "blocks" or rows is None or new[place.name].dim() != 2:
        return None
    above = new.get(".".join(["blocks", str(int(parts[1]) + 1), *parts[2:]]))
    own = new[place.name]
    return None if above is None else torch.where(rows.to(own.device).unsqueeze(1), above, own)
