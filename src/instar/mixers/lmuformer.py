"""LMUFormer: convolutions, a Legendre memory where a transformer has attention, and a mixer of channels, frame by frame.

Liu, Datta, Li, Beerel 2024, "LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units" (arXiv 2402.04882).
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels import causal_convolution
from instar.kernels.causal_convolution import Taps
from instar.kernels.legendre_memory import Rule
from instar.mixers.batch_norm import BatchNorm
from instar.mixers.lmu import LMU, LMUState

REACH = 2
"""Frames before its own that a convolution reads."""


class LMUFormerState(NamedTuple):
    """What is kept between calls: its size does not grow."""

    inputs: tuple[Tensor, ...]
    """The last two inputs of each convolution, [B, 2, D]."""
    memories: tuple[Tensor, ...]
    """Of each block, [B, memories, order], float32 or better."""


class Rows(NamedTuple):
    """How the rows of a call are laid out, for every layer of the stack."""

    mask: Tensor | None
    reset: Tensor | None
    taps: Taps | None
    """None in the reference form, where convolutions and recurrences go token by token."""


class CausalConvolution(nn.Module):
    """y_t = W_0 x_{t-2} + W_1 x_{t-1} + W_2 x_t, without a bias; weights as of `nn.Conv1d(D, D, 3)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Conv1d(width, width, REACH + 1, bias=False).weight

    def forward(self, x: Tensor, state: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """x [B, T, D], state [B, 2, D]."""
        if rows.taps is None:
            return causal_convolution.stepwise(x, self.weight, state, rows.mask, rows.reset)
        return causal_convolution.causal_convolution(x, self.weight, state, rows.taps)


class PatchEmbedding(nn.Module):
    """n times x ← BN(ReLU(conv x)); then x ← x + conv x, which tells of relative positions. No frame is dropped."""

    def __init__(self, width: int, convolutions: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(CausalConvolution(width) for _ in range(convolutions))
        self.norms = nn.ModuleList(BatchNorm(width) for _ in range(convolutions))
        self.relative = CausalConvolution(width)

    def forward(self, x: Tensor, state: tuple[Tensor, ...], rows: Rows) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x [B, T, D]; the inputs before of each convolution."""
        after = []
        for convolve, norm, before in zip(self.convolutions, self.norms, state[:-1], strict=True):
            x, last = convolve(x, before, rows)
            x = norm(F.relu(x), rows.mask)
            after.append(last)
        y, last = self.relative(x, state[-1], rows)
        return x + y, (*after, last)


class LMUBlock(nn.Module):
    """x ← x + BN(LMU(x)); x ← x + ReLU(BN(W_2 GELU(BN(W_1 x)))); the second line only where the expansion is not 0."""

    def __init__(self, memory: LMU, expansion: int) -> None:
        super().__init__()
        width, hidden = memory.width, expansion * memory.width
        self.memory, self.memory_norm, self.expansion = memory, BatchNorm(width), expansion
        if expansion:
            self.up, self.up_norm = nn.Linear(width, hidden), BatchNorm(hidden)
            self.down, self.down_norm = nn.Linear(hidden, width), BatchNorm(width)

    def forward(self, x: Tensor, m: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """x [B, T, D], m [B, memories, order]."""
        run = self.memory.forward if rows.taps is not None else self.memory.reference
        y, state = run(x, LMUState(m), mask=rows.mask, reset=rows.reset)
        x = x + self.memory_norm(y, rows.mask)
        if self.expansion:
            hidden = F.gelu(self.up_norm(self.up(x), rows.mask))
            x = x + F.relu(self.down_norm(self.down(hidden), rows.mask))
        return x, state.m


class LMUFormer(Mixer):
    r"""x ← PatchEmbedding(x);  depth times: x ← x + BN(LMU(x)), x ← x + FFN(x).

    A network of its own: a classifier puts it between embedding and head, whose logits it averages over frames. In a block of
    another host it stands where attention stands.

    Args:
        width: D. heads: part of every mixer's signature; it changes nothing (see memories).
        order, theta, discretisation: of the memories, see `LMU`. memories: of each block, with an input each; the paper has one.
        depth: blocks. convolutions: of the patch embedding, before the last one; 0 leaves all of it out.
        expansion: of the mixer of channels, in widths; 0 leaves it out.

    Shapes: x [B, T, D] -> [B, T, D]; state `LMUFormerState`. Raises ShapeError. O(T D²) time beside the memories', O(D + order)
    state. BatchNorm reads the whole batch in training: splits and single rows give the same in eval mode alone.
    Differs from the paper: convolutions read the past only, where the authors' read a frame ahead each (five in all).
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 1,
        order: int = 64,
        theta: float = 64.0,
        discretisation: Rule = "zoh",
        memories: int = 1,
        depth: int = 1,
        convolutions: int = 4,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        if min(width, heads, memories, depth) < 1 or min(convolutions, expansion) < 0:
            raise ShapeError(
                "LMUFormer expects positive sizes, and convolutions and expansion of 0 or more; received "
                f"width={width}, heads={heads}, memories={memories}, depth={depth}, convolutions={convolutions}, "
                f"expansion={expansion}."
            )
        self.width, self.heads = width, heads
        self.embedding = PatchEmbedding(width, convolutions) if convolutions else None
        self.blocks = nn.ModuleList(
            LMUBlock(LMU(width, heads=memories, order=order, theta=theta, discretisation=discretisation), expansion)
            for _ in range(depth)
        )

    def init_state(self, batch: int) -> LMUFormerState:
        """Zeros."""
        count = 0 if self.embedding is None else len(self.embedding.convolutions) + 1
        weight = next(self.parameters())
        memories = tuple(block.memory.init_state(batch).m for block in self.blocks)  # type: ignore[operator,union-attr]
        return LMUFormerState(tuple(weight.new_zeros(batch, REACH, self.width) for _ in range(count)), memories)

    def forward(
        self, x: Tensor, state: LMUFormerState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LMUFormerState]:
        """All frames at once. See `Mixer.forward`."""
        return self._run(x, state, Rows(mask, reset, Taps(x, REACH, mask, reset)))

    def reference(
        self, x: Tensor, state: LMUFormerState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LMUFormerState]:
        """Convolutions and memories frame by frame."""
        return self._run(x, state, Rows(mask, reset, None))

    def _run(self, x: Tensor, state: LMUFormerState | None, rows: Rows) -> tuple[Tensor, LMUFormerState]:
        inputs, memories = self.init_state(x.shape[0]) if state is None else state
        kind = x.dtype
        if rows.mask is not None:
            x = x.masked_fill(~rows.mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
        if self.embedding is not None:
            x, inputs = self.embedding(x, inputs, rows)
        after = []
        for block, before in zip(self.blocks, memories, strict=True):
            x, m = block(x, before, rows)
            after.append(m)
        return x.to(kind), LMUFormerState(inputs, tuple(after))
