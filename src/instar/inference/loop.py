"""One module applied again and again, with shared weights."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.inference.descent import share

Injection = Literal["add", "multiply", "gate", "none"]
LoopStart = Literal["zero", "one", "noise", "input"]


class Loop(nn.Module):
    r"""Z_{t+1} = F(Z_t ⊕ P), where F is any module that keeps its input's shape.

    Args:
        block: F. One that returns a tuple is read at its first entry. injection: ⊕ is a sum, a product, a sum with P scaled by a
            learnt gate of each channel, or nothing. start: Z₀ is 0, 1, N(0, 1), or P.
        index: loops that have a learnt vector each, added to what the block reads; further loops use the last. 0 is none.
        width: channels of the last axis, needed for gate and index.

    Shapes: P and Z [B, …]. Complexity: loops times that of F; parameters of F alone. Raises ShapeError.
    Sources: Yang et al. 2023 (arXiv 2311.12424), Gao et al. 2024 (2402.13572); implicit: Bai et al. 2019 (1909.01377).
    """

    def __init__(
        self, block: nn.Module, *, injection: Injection = "add", start: LoopStart = "zero", index: int = 0, width: int = 0
    ) -> None:
        super().__init__()
        if injection not in get_args(Injection) or start not in get_args(LoopStart):
            raise ShapeError(
                f"injection must be one of {', '.join(get_args(Injection))} and start one of {', '.join(get_args(LoopStart))}; "
                f"received {injection!r} and {start!r}."
            )
        if (injection == "gate" or index) and width < 1:
            raise ShapeError("A gate, and vectors by loop, need the width of the last axis: give width.")
        self.block, self.injection, self.start = block, injection, start
        self.gate = nn.Parameter(torch.zeros(width)) if injection == "gate" else None
        self.index = nn.Embedding(index, width) if index else None
        if self.index is not None:
            nn.init.normal_(self.index.weight, std=0.02)

    def first(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Z₀, of the shape of P."""
        if self.start == "input":
            return p
        if self.start == "noise":
            return torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
        return torch.ones_like(p) if self.start == "one" else torch.zeros_like(p)

    def step(self, z: Tensor, p: Tensor, number: int = 0, **given: Any) -> Tensor:
        """Z_{t+1} of Z_t; `given` goes to the block (masks, positions)."""
        if self.injection == "add":
            z = z + p
        elif self.injection == "multiply":
            z = z * p
        elif self.gate is not None:
            z = z + 2 * self.gate.sigmoid() * p  # the plain sum at the start
        if self.index is not None:
            z = z + self.index.weight[min(number, self.index.num_embeddings - 1)]
        found = self.block(z, **given)
        found = found[0] if isinstance(found, tuple) else found
        if found.shape != z.shape:
            raise ShapeError(f"A looped module keeps the shape of its input {list(z.shape)}; it returned {list(found.shape)}.")
        return found

    def forward(
        self,
        p: Tensor,
        loops: int,
        *,
        window: int | None = None,
        generator: torch.Generator | None = None,
        **given: Any,
    ) -> list[Tensor]:
        """Z after each of the last `window` loops (all where None); earlier loops run without a graph, so memory is O(window)."""
        window = loops if window is None else min(window, loops)
        if loops < 0 or window < 0:
            raise ShapeError(f"loops and window are not negative; received {loops} and {window}.")
        z, found = self.first(p, generator), []
        with torch.no_grad():
            for number in range(loops - window):
                z = self.step(z, p, number, **given)
        for number in range(loops - window, loops):
            z = self.step(z, p, number, **given)
            found.append(z)
        return found

    @torch.no_grad()
    def adaptive(
        self, p: Tensor, *, tolerance: float, most: int, generator: torch.Generator | None = None, **given: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each sample loops until ‖Z_{t+1} − Z_t‖ / ‖Z_t‖ < tolerance, by itself, at most `most` times.

        Returns Z [B, …], loops int64 [B] and changes [loops, B]. What stopped is computed no more. Tensors given to the block
        with B as their first axis are taken to speak of the samples, and go on with them.
        """
        if tolerance < 0 or most < 0:
            raise ShapeError(f"tolerance and the most loops are not negative; received {tolerance} and {most}.")
        z = self.first(p, generator).clone()
        loops = torch.zeros(len(p), dtype=torch.int64, device=p.device)
        changes, going = [], torch.arange(len(p), device=p.device)
        for number in range(most):
            if not len(going):
                break
            before = z[going]
            left = {name: value[going] if _of_samples(value, len(p)) else value for name, value in given.items()}
            after = self.step(before, p[going], number, **left)
            moved = share((after - before).flatten(1).norm(dim=1), before.flatten(1).norm(dim=1))
            z[going] = after
            loops[going] += 1
            changes.append(torch.zeros(len(p), dtype=z.dtype, device=z.device).index_copy(0, going, moved.to(z.dtype)))
            going = going[moved >= tolerance]
        return z, loops, torch.stack(changes) if changes else z.new_zeros(0, len(p))

    def implicit(self, p: Tensor, loops: int, *, generator: torch.Generator | None = None, **given: Any) -> Tensor:
        """The fixed point after `loops` loops, with its gradient by the implicit function theorem: memory of one loop.

        dL/dθ = u ∂F/∂θ, u = dL/dZ + u ∂F/∂Z, solved by as many iterations. Right where the loops converge.
        """
        with torch.no_grad():
            z = self.first(p, generator)
            for number in range(loops):
                z = self.step(z, p, number, **given)
        if not torch.is_grad_enabled():
            return z
        at = z.detach().requires_grad_()
        again = self.step(at, p, loops, **given)
        out = self.step(z.detach(), p, loops, **given)

        def solve(up: Tensor) -> Tensor:
            u = up
            for _ in range(loops):
                u = up + torch.autograd.grad(again, at, u, retain_graph=True)[0]
            return u

        if out.requires_grad:  # not where everything is frozen
            out.register_hook(solve)
        return out


def _of_samples(value: Any, batch: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch
