"""What the language problems share: the model under test and its closed-form costs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from instar.catalogue import Build
from instar.models import modes
from instar.models.decoder import Decoder


class Subject(Decoder):
    """A decoder that remembers how its mixers were built, for the closed forms of their cards."""

    def __init__(self, build: Build, *, vocabulary: int, width: int, depth: int, heads: int) -> None:
        super().__init__(vocabulary, width, depth, build, heads=heads)
        self.build, self.heads = build, heads

    def layer_cost(self, tokens: int) -> tuple[float, float] | None:
        """Forward FLOPs and state bytes of one mixer layer over one sequence."""
        return self.build.cost(tokens, self.width, heads=self.heads)

    def forward_flops(self, tokens: int) -> float | None:
        """FLOPs of one forward pass over one sequence: matrix products of blocks and head, and the mixers by their cards."""
        mixer = self.layer_cost(tokens)
        if mixer is None:
            return None
        inside = {id(p) for block in self.blocks for p in block.mixer.parameters()}  # type: ignore[union-attr]
        lookup = 0 if self.tied else self.embedding.weight.numel()
        matrices = sum(p.numel() for p in self.parameters() if p.dim() == 2 and id(p) not in inside) - lookup
        return 2.0 * tokens * matrices + self.depth * mixer[0]


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a module's parameters are."""
    return next(model.parameters()).device


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards each module is in the mode that it was in."""
    with modes.evaluating(model), torch.no_grad():
        yield
