"""What the language problems share: the model under test, its training settings, its closed-form costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instar.bench.fit import fit
from instar.catalogue import Build
from instar.errors import ShapeError
from instar.interfaces import Monitor
from instar.models.decoder import Decoder


class Subject(Decoder):
    """A decoder that remembers how its mixers were built, for the closed forms of their cards."""

    def __init__(self, build: Build, *, vocabulary: int, width: int, depth: int, heads: int) -> None:
        super().__init__(vocabulary, width, depth, build, heads=heads, positions=build.card.capability("positions"))
        self.build = build

    def layer_cost(self, tokens: int) -> tuple[float, float] | None:
        """Forward FLOPs and state bytes of one mixer layer over one sequence."""
        return self.build.cost(tokens, self.config["width"], heads=self.config["heads"])

    def forward_flops(self, tokens: int) -> float | None:
        """FLOPs of one forward pass over one sequence: matrix products of blocks and head, and the mixers by their cards."""
        mixer = self.layer_cost(tokens)
        if mixer is None:
            return None
        inside = {id(p) for block in self._blocks() for p in block.mixer.parameters()}
        lookup = 0 if self.config["tied"] else self.embedding.weight.numel()
        matrices = sum(p.numel() for p in self.parameters() if p.dim() == 2 and id(p) not in inside) - lookup
        return 2.0 * tokens * matrices + self.config["depth"] * mixer[0]


def train(
    model: Subject,
    batch: Callable[[int], Any],
    loss: Callable[[Subject, Any], Tensor],
    *,
    steps: int,
    lr: float,
    precision: str,
    monitor: Monitor | None,
    checkpoint: Path | None,
) -> None:
    """`fit` with the recipe that all language problems use."""
    if precision not in ("float32", "bf16"):
        raise ShapeError(f"precision must be 'float32' or 'bf16'; received '{precision}'.")
    fit(
        model,
        batch,
        loss,
        steps=steps,
        lr=lr,
        precision=precision,  # type: ignore[arg-type]
        monitor=monitor,
        checkpoint=checkpoint,
    )


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a module's parameters are."""
    return next(model.parameters()).device
