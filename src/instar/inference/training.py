"""The inner loop with a graph: descent through which the loss is back-propagated (Hessian–vector products)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instar.inference.descent import Energy, identity, slope


@dataclass(frozen=True)
class Unrolled:
    """How the loop is unrolled.

    detach: the state is cut from its past before each step, so that each step learns for itself. truncate: only the last step's
    gradient is differentiated; earlier ones are constants. clamp_gradient: c of |g| ≤ c / a by coordinate, clamp_state: largest
    |z|; 0 is none.
    """

    detach: bool = True
    truncate: bool = False
    clamp_gradient: float = 0.0
    clamp_state: float = 0.0

    def __call__(
        self,
        energies: Sequence[Energy],
        state: Tensor,
        size: Tensor,
        *,
        point: Callable[[Tensor], Tensor] = identity,
        noise: float = 0.0,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """States after every step, with their graphs, and the energies before every step; one energy of `energies` a step."""
        states, found = [], []
        for number, energy in enumerate(energies):
            last = number + 1 == len(energies)
            if self.detach:
                state = state.detach()
            if noise > 0:
                state = state + noise * torch.randn_like(state)
            now = slope(energy, _leaf(point(state)), create_graph=last or not self.truncate)
            g = now.gradient
            if self.clamp_gradient > 0:
                bound = self.clamp_gradient / size.detach()
                g = torch.minimum(torch.maximum(g, -bound), bound)
            state = now.point - size * g
            if self.clamp_state > 0:
                state = state.clamp(-self.clamp_state, self.clamp_state)
            states.append(state)
            found.append(now.energies)
        return states, found


def _leaf(point: Tensor) -> Tensor:
    """A point with respect to which a gradient can be taken: itself where it has a graph."""
    return point if point.requires_grad else point.detach().requires_grad_()
