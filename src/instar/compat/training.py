"""The loop of every head that is trained: Adam, a linear warm-up, half a cosine, minibatches that seed and step decide."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instar.bench.seeds import derive, stream
from instar.errors import DataError, DivergedError, ShapeError
from instar.interfaces import Monitor


@dataclass(frozen=True)
class Recipe:
    """How long, in what portions and how fast a head learns."""

    epochs: int = 25
    """Passes over the pairs, where nobody says how many steps."""
    most_items: int = 1_000_000
    """No more pairs than this are seen in all, so that training does not grow with the pairs without end."""
    fewest: int = 0
    """At least so many steps, however few pairs there are."""
    batch: int = 128
    """Pairs in a step; more for many pairs (see `batch_size`)."""
    lr: float = 1e-3
    weight_decay: float = 0.0
    decoupled: bool = False
    """Whether weight decay is AdamW's; otherwise it is part of the gradient, as in Adam."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises."""

    def batch_size(self, items: int) -> int:
        """`batch`, doubled (at most to eight times) until an epoch has fewer than 128 steps; never more than there are items."""
        size = self.batch
        while size < 8 * self.batch and items >= 128 * size:
            size *= 2
        return min(size, items)

    def steps(self, items: int) -> int:
        """Steps that suit the number of pairs."""
        size = self.batch_size(items)
        return max(1, self.fewest, min(self.epochs * (items // size), self.most_items // size))


def train(
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    items: int,
    *,
    recipe: Recipe | None = None,
    steps: int | None = None,
    seed: int = 0,
    monitor: Monitor | None = None,
) -> None:
    """Minimise a loss over the parameters of `module`, in place.

    Args:
        loss: places [B] of items -> their mean loss. It closes over the data; the places are int64 on the module's device.
        items: how many there are.
        steps: of Adam; None takes `recipe.steps(items)`, 0 changes nothing.
        monitor: called with (steps done, loss) after each step; True stops.

    The result is a function of the module, loss, steps and seed alone (same build, threads and device). Raises DivergedError for
    a loss that is not finite, DataError for no items, ShapeError for a negative number of steps.
    """
    if items < 1:
        raise DataError("There is nothing to train on: received 0 pairs.")
    recipe = recipe or Recipe()
    steps = recipe.steps(items) if steps is None else steps
    if steps < 0:
        raise ShapeError(f"steps expects 0 or more; received {steps}.")
    parameters = [p for p in module.parameters() if p.requires_grad]
    device = parameters[0].device
    optimiser = torch.optim.Adam(
        parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, decoupled_weight_decay=recipe.decoupled, fused=True
    )
    batches = Batches(items, recipe.batch_size(items), seed)
    before = module.training
    module.train()
    try:
        # What draws random numbers inside the loss (dropout) draws the same ones whatever was drawn before.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
            for step in range(steps):
                torch.manual_seed(derive(seed, f"step/{step}"))
                for group in optimiser.param_groups:
                    group["lr"] = recipe.lr * rate(step, steps, recipe.warmup)
                value = loss(batches.places(step).to(device))
                found = float(value.detach())
                if not math.isfinite(found):
                    raise DivergedError(
                        f"The loss is {found} at step {step + 1} of {steps}. Look for vectors that are not of length 1, or for "
                        f"settings far from the defaults (rate {recipe.lr})."
                    )
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
                if monitor is not None and monitor(step + 1, found):
                    return
    finally:
        module.train(before)


def rate(step: int, steps: int, warmup: float) -> float:
    """The rate at a step over its peak: a line up to 1, then half a cosine towards 0."""
    warm = min(steps, max(1, round(warmup * steps)))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Batches:
    """Minibatches without replacement within an epoch; what is over at the end of an epoch waits for the next one's draw."""

    def __init__(self, items: int, size: int, seed: int) -> None:
        self.items, self.size, self.seed = items, size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def places(self, step: int) -> Tensor:
        """int64 [size]: the items of a step, a pure function of seed and step."""
        epoch, place = divmod(step, self.items // self.size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, torch.randperm(self.items, generator=stream(self.seed, f"epoch/{epoch}"))
        return self._order[place * self.size : (place + 1) * self.size]
