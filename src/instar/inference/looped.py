"""Looped transformer and AlgoFormer: pre, a loop whose number of turns can change at test time, post."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.inference.gpt2_block import Init, initialise, stack
from instar.inference.loop import Injection, Loop, LoopStart
from instar.inference.regression import random_means, squared_error
from instar.interfaces import Predictor, Trace


class Positioned(nn.Module):
    """F of the looped transformer: positions are added and the last norm is applied in every loop."""

    def __init__(self, blocks: nn.Module, width: int, length: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks, self.norm = blocks, nn.LayerNorm(width)

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(self.blocks(z + self.positions[: z.shape[1]]))


class Looped(Predictor):
    r"""looped: P = W_in x, Z_{t+1} = LN(blocks(Z_t + P + positions)), y = W_out Z_t.
    AlgoFormer: H = Pre(W_in x + positions), Z_{t+1} = Loop(Z_t ⊕ H), y = W_out LN(Post(Z_t)).

    Args:
        inputs, outputs: F and O, channels of x and y. length: most positions. heads: of attention.
        depth: blocks of the loop. pre, post: blocks before and behind it; where both are 0 it is the looped transformer.
        steps: loops at the end of training and of a plain call. window: loops whose outputs are trained on; earlier ones run
            without a graph, unless nothing is injected. grow_every: loops begin with `window` and grow by 2 after so many
            training steps; 0 begins with all.
        random_loops: up to so many more, drawn for each batch. last_only: only the last output counts. deepen: weights of the
            outputs in the window grow linearly. implicit: gradients at the fixed point instead of a window.
        injection, start, index: of `Loop`. causal: False for encoders. init: of linear maps.
        tolerance: at inference each sample stops when a loop moves it by less than this share; 0 never.

    Shapes: x [B, T, F] -> y [B, T, O]. Complexity: pre + steps · depth + post blocks in time, pre + depth + post in parameters;
    training memory O(window · depth). Raises ShapeError. Differs from the papers: see the card.
    Sources: Yang et al. 2023 (arXiv 2311.12424), Gao et al. 2024 (2402.13572).
    """

    def __init__(
        self,
        width: int = 64,
        *,
        inputs: int = 5,
        outputs: int = 1,
        length: int = 64,
        heads: int = 4,
        depth: int = 1,
        pre: int = 0,
        post: int = 0,
        steps: int = 8,
        window: int = 5,
        grow_every: int = 0,
        random_loops: int = 0,
        last_only: bool = False,
        deepen: bool = False,
        implicit: bool = False,
        injection: Injection = "add",
        start: LoopStart = "zero",
        index: int = 0,
        causal: bool = True,
        init: Init = "fan_in",
        tolerance: float = 0.0,
    ) -> None:
        super().__init__()
        if min(width, inputs, outputs, length, heads, depth, steps, window) < 1 or min(pre, post, grow_every, random_loops) < 0:
            raise ShapeError("Looped takes sizes, depth, steps and window of at least 1, and no negative pre, post or loops.")
        if injection == "none" and (implicit or start != "input"):
            raise ShapeError(
                "Looped without injection reads x by its start alone: it takes start='input', and no implicit gradient."
            )
        self.width, self.inputs, self.outputs, self.length = width, inputs, outputs, length
        self.steps, self.window, self.grow_every, self.random_loops = steps, window, grow_every, random_loops
        self.last_only, self.deepen, self.implicit, self.tolerance = last_only, deepen, implicit, tolerance
        self.read_in, self.read_out = nn.Linear(inputs, width), nn.Linear(width, outputs)
        blocks: nn.Module = stack(width, depth, heads, causal=causal)
        algoformer = pre + post > 0
        self.positions = nn.Parameter(0.02 * torch.randn(length, width)) if algoformer else None
        self.pre = stack(width, pre, heads, causal=causal)
        self.loop = Loop(
            blocks if algoformer else Positioned(blocks, width, length),
            injection=injection,
            start=start,
            index=index,
            width=width,
        )
        self.post = nn.Sequential(*stack(width, post, heads, causal=causal), *([nn.LayerNorm(width)] if algoformer else []))
        initialise(self, init, pre + depth + post)
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))

    trained: Tensor

    def enter(self, x: Tensor) -> Tensor:
        """P, or H: what every loop is given, [B, T, D]."""
        if x.dim() != 3 or x.shape[2] != self.inputs or x.shape[1] > self.length:
            raise ShapeError(f"Expected x [B, T ≤ {self.length}, {self.inputs}]; received {list(x.shape)}.")
        p = self.read_in(x)
        return p if self.positions is None else self.pre(p + self.positions[: x.shape[1]])

    def leave(self, z: Tensor) -> Tensor:
        """y of an iterate."""
        return self.read_out(self.post(z))

    @torch.no_grad()
    def predict(self, x: Tensor, *, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Trace]:
        """y after so many loops, or fewer where `tolerance` stops a sample; the trace has loops and changes by row."""
        if steps < 0:
            raise ShapeError(f"steps is not negative; received {steps}.")
        z, loops, changes = self.loop.adaptive(self.enter(x), tolerance=self.tolerance, most=steps, generator=generator)
        return self.leave(z), Trace(loops, changes=changes)

    def loops(self) -> int:
        """Loops of the next training step."""
        if not self.grow_every:
            return self.steps
        return min(self.steps, self.window + 2 * (int(self.trained) // self.grow_every))

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Mean over the window of the squared error over all counted positions."""
        loops = self.loops()
        if self.training:
            self.trained += 1
            loops += int(torch.randint(self.random_loops + 1, ())) if self.random_loops else 0
        p = self.enter(x)
        # Where nothing is injected P enters by Z₀ alone, and loops without a graph would cut off all that is before the loop.
        window = loops if self.loop.injection == "none" else self.window
        iterates = [self.loop.implicit(p, loops)] if self.implicit else self.loop(p, loops, window=window)[-self.window :]
        iterates = iterates[-1:] if self.last_only else iterates
        losses = torch.stack([squared_error(self.leave(z), target) for z in iterates])
        weights = torch.arange(1.0, len(losses) + 1).to(losses) if self.deepen else torch.ones_like(losses)
        return (weights * losses).sum() / weights.sum()

    def example(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random vectors, and the mean of each position's channels as its target."""
        return random_means(self.read_in.weight, self.outputs, batch, generator)
