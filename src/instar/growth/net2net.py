"""Net2Net: wider by copies of units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instar.bench.seeds import stream
from instar.errors import ShapeError
from instar.growth import plan as planning
from instar.growth import widening
from instar.growth.duplicating import duplicating, new_rows
from instar.growth.growing import Grown, growing
from instar.growth.widening import Place
from instar.interfaces import Growth, Plan, Preserves


class Net2Net(Growth):
    """Net2WiderNet: units are copied, what reads c copies of a unit is divided by c, and a little noise parts the copies.

    Args:
        noise: deviation of what is added to the incoming weights of copies, relative to that of the matrix. 0 preserves the
            function but for rounding, and the copies then stay copies: they get equal gradients for ever.

    A plan names width (a multiple of what there is, with equally many more heads) and hidden (any number). The optimiser's
    averages go with the units, divided as their gradients are. Takes a `Decoder` with softmax attention. Raises TransformError.
    """

    architecture = "decoder"
    sizes = ("width", "hidden")

    def __init__(self, *, noise: float = 0.01) -> None:
        if noise < 0:
            raise ShapeError(f"noise expects a number of at least 0; received {noise}.")
        self.noise = noise

    @property
    def preserves(self) -> Preserves:
        return "nothing" if self.noise else "rounding"

    def grow(self, model: nn.Module, plan: Plan, *, optimizer: torch.optim.Optimizer | None = None, seed: int = 0) -> Grown:
        model = widening.plain(model, "net2net")
        current = widening.sizes(model)
        wanted = planning.sizes(plan, {name: current[name] for name in self.sizes}, "net2net")
        to = duplicating(model, wanted["width"], wanted["hidden"], seed)
        settings = {"noise": self.noise, "plan": dict(plan), "seed": seed}
        with growing(model, optimizer, method="net2net", settings=settings) as work:
            new = {place.name: self._noisy(place, seed) for place in widening.places(model, to)}
            widening.widen(model, new, to, work)
            widening.settle(model, wanted["width"], wanted["hidden"])
        return work.grown

    def _noisy(self, place: Place, seed: int) -> Tensor:
        value = widening.values(place, seed, {})
        rows = new_rows(place.axes[0], len(place.parameter)) if value.dim() == 2 else None
        if not self.noise or rows is None:
            return value
        drawn = torch.randn(value.shape, generator=stream(seed, f"noise/{place.name}/{len(place.parameter)}")).to(value)
        size = self.noise * value.std() * drawn
        return torch.where(rows.to(value.device).unsqueeze(1), value + size, value)
