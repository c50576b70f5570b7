"""Spiking LMUFormer: the same network, whose matrix products read spikes of leaky integrate-and-fire neurons.

Liu, Datta, Li, Beerel 2024, "LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units" (arXiv 2402.04882).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.interfaces import Mixer
from instar.kernels.causal_convolution import Taps
from instar.kernels.legendre_memory import Form, Rule, legendre_memory, system
from instar.mixers.batch_norm import BatchNorm
from instar.mixers.lif import LIF
from instar.mixers.lmuformer import REACH, CausalConvolution, Rows

Neurons = Callable[..., LIF]


class SpikingState(NamedTuple):
    """What is kept between calls: its size does not grow."""

    inputs: tuple[Tensor, ...]
    """The last two inputs of each convolution, [B, 2, D]."""
    memories: tuple[Tensor, ...]
    """Of each block, [B, memories, order]."""
    potentials: tuple[Tensor, ...]
    """Of each layer of neurons, [B, its width], in the order in which frames meet them."""


class Firing(nn.Module):
    """s = LIF(BN(x))."""

    def __init__(self, width: int, neurons: LIF) -> None:
        super().__init__()
        self.width, self.norm, self.neurons = width, BatchNorm(width), neurons

    def forward(self, x: Tensor, v: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """x [B, T, D], v [B, D]."""
        x = self.norm(x, rows.mask)
        found: tuple[Tensor, Tensor] = self.neurons(x, v, mask=rows.mask, reset=rows.reset, stepwise=rows.taps is None)
        return found


class SpikingPatchEmbedding(nn.Module):
    """n - 1 times x ← LIF(BN(conv x)); then a = conv x and a + conv LIF(BN(a)): what leaves is numbers, not spikes."""

    def __init__(self, width: int, convolutions: int, neurons: Neurons) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(CausalConvolution(width) for _ in range(convolutions + 1))
        self.firing = nn.ModuleList(Firing(width, neurons()) for _ in range(convolutions))

    def forward(
        self, x: Tensor, inputs: tuple[Tensor, ...], potentials: tuple[Tensor, ...], rows: Rows
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """x [B, T, D]; the inputs before of each convolution, and the potentials of each layer of neurons."""
        x, last = self.convolutions[0](x, inputs[0], rows)
        kept, charged, spikes = [last], [], x
        for fire, convolve, before, v in zip(self.firing, self.convolutions[1:], inputs[1:], potentials, strict=True):
            entered = x
            spikes, v = fire(x, v, rows)
            x, last = convolve(spikes, before, rows)
            kept.append(last)
            charged.append(v)
        return entered + x, tuple(kept), tuple(charged)


class SpikingBlock(nn.Module):
    """s = LIF(BN(x)), threshold ½;  u = LIF(BN(W_u s));  h = LIF(BN(W_h [LIF(BN(m)); s]));  x ← x + BN(W_o h);
    x ← x + W_2 LIF(BN(W_1 LIF(BN(x)))), only where the expansion is not 0. The memory m of u is linear, of numbers.
    """

    def __init__(
        self,
        width: int,
        *,
        order: int,
        theta: float,
        discretisation: Rule,
        memories: int,
        expansion: int,
        neurons: Neurons,
    ) -> None:
        super().__init__()
        self.order, self.memories, self.expansion = order, memories, expansion
        self.system = system(order, theta, discretisation)  # no buffer: in half precision its powers would be lost
        self.enter = Firing(width, neurons(threshold=0.5))
        self.u_proj, self.u_firing = nn.Linear(width, memories), Firing(memories, neurons())
        self.m_firing = Firing(memories * order, neurons())
        self.h_proj, self.h_firing = nn.Linear(memories * order + width, width), Firing(width, neurons())
        self.o_proj, self.o_norm = nn.Linear(width, width), BatchNorm(width)
        for projection in (self.u_proj, self.h_proj):
            nn.init.trunc_normal_(projection.weight, std=0.02)
            nn.init.zeros_(projection.bias)
        if expansion:
            self.up_firing, self.up = Firing(width, neurons()), nn.Linear(width, expansion * width)
            self.down_firing, self.down = Firing(expansion * width, neurons()), nn.Linear(expansion * width, width)

    def init_memory(self, batch: int) -> Tensor:
        """Zeros [B, memories, order]."""
        weight = self.o_proj.weight
        kind = torch.promote_types(weight.dtype, torch.float32)
        return weight.new_zeros(batch, self.memories, self.order, dtype=kind)

    def layers(self) -> list[Firing]:
        """Its neurons, in the order in which frames meet them."""
        found = [self.enter, self.u_firing, self.m_firing, self.h_firing]
        return [*found, self.up_firing, self.down_firing] if self.expansion else found

    def forward(
        self, x: Tensor, m: Tensor, potentials: tuple[Tensor, ...], rows: Rows
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """x [B, T, D], m [B, memories, order], potentials of each of `layers`."""
        after = []
        before = iter(potentials)

        def fire(layer: Firing, given: Tensor) -> Tensor:
            spikes, v = layer(given, next(before), rows)
            after.append(v)
            return spikes

        s = fire(self.enter, x)
        u = fire(self.u_firing, self.u_proj(s))
        form: Form = "auto" if rows.taps is not None else "recurrent"
        kind = torch.promote_types(x.dtype, torch.float32)
        found, m = legendre_memory(u.to(kind), self.system, state=m.to(kind), mask=rows.mask, reset=rows.reset, form=form)
        read = fire(self.m_firing, found.flatten(2).to(x.dtype))
        h = fire(self.h_firing, self.h_proj(torch.cat([read, s], dim=-1)))
        x = x + self.o_norm(self.o_proj(h), rows.mask)
        if self.expansion:
            x = x + self.down(fire(self.down_firing, self.up(fire(self.up_firing, x))))
        return x, m, tuple(after)


class SpikingLMUFormer(Mixer):
    r"""x ← SpikingPatchEmbedding(x);  depth times a SpikingBlock;  out = LIF(BN(x)), which is spikes.

    Beside the first convolution, whose inputs are numbers, and the memories' own recurrence, every matrix product reads
    zeros and ones: an addition for each spike and each of its weights. Time is that of the sequence, a step a frame.

    Args:
        width: D. heads: part of every mixer's signature; it changes nothing.
        order, theta, discretisation, memories, depth, convolutions, expansion: as of `LMUFormer`, but for an order twice as
            large and at least one convolution.
        tau, threshold, alpha: of the neurons, see `LIF`; those that a block starts with have the threshold ½.

    Shapes: x [B, T, D] -> [B, T, D]; state `SpikingState`. Raises ShapeError. O(T D²) time, in T dependent steps for each layer
    of neurons. Runs in the precision of its parameters, under autocast too: a rounded potential fires at another time.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 1,
        order: int = 128,
        theta: float = 64.0,
        discretisation: Rule = "zoh",
        memories: int = 1,
        depth: int = 1,
        convolutions: int = 4,
        expansion: int = 4,
        tau: float = 2.0,
        threshold: float = 1.0,
        alpha: float = 4.0,
    ) -> None:
        super().__init__()
        if min(width, heads, memories, depth, convolutions) < 1 or expansion < 0:
            raise ShapeError(
                "Spiking LMUFormer expects positive sizes, and an expansion of 0 or more; received "
                f"width={width}, heads={heads}, memories={memories}, depth={depth}, convolutions={convolutions}, "
                f"expansion={expansion}."
            )
        self.width, self.heads = width, heads

        def neurons(threshold: float = threshold) -> LIF:
            return LIF(tau=tau, threshold=threshold, alpha=alpha)

        self.embedding = SpikingPatchEmbedding(width, convolutions, neurons)
        self.blocks = nn.ModuleList(
            SpikingBlock(
                width,
                order=order,
                theta=theta,
                discretisation=discretisation,
                memories=memories,
                expansion=expansion,
                neurons=neurons,
            )
            for _ in range(depth)
        )
        self.leave = Firing(width, neurons())

    def init_state(self, batch: int) -> SpikingState:
        """Zeros."""
        weight = self.leave.norm.weight
        layers: list[Firing] = [*self.embedding.firing]
        for block in self.blocks:
            layers += block.layers()  # type: ignore[operator]
        return SpikingState(
            tuple(weight.new_zeros(batch, REACH, self.width) for _ in self.embedding.convolutions),
            tuple(block.init_memory(batch) for block in self.blocks),  # type: ignore[operator]
            tuple(weight.new_zeros(batch, layer.width) for layer in [*layers, self.leave]),
        )

    def forward(
        self, x: Tensor, state: SpikingState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, SpikingState]:
        """Layer by layer; a layer of neurons is one function, whose steps build no graph. See `Mixer.forward`."""
        return self._run(x, state, Rows(mask, reset, Taps(x, REACH, mask, reset)))

    def reference(
        self, x: Tensor, state: SpikingState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, SpikingState]:
        """Convolutions, memories and neurons frame by frame; the surrogate's slope is put into autograd step by step."""
        return self._run(x, state, Rows(mask, reset, None))

    def _run(self, x: Tensor, state: SpikingState | None, rows: Rows) -> tuple[Tensor, SpikingState]:
        inputs, memories, potentials = self.init_state(x.shape[0]) if state is None else state
        kind = x.dtype
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.leave.norm.weight.dtype)
            if rows.mask is not None:
                x = x.masked_fill(~rows.mask.unsqueeze(-1), 0.0)  # whatever stands in the padding, even NaN, ends here
            place = len(self.embedding.firing)
            x, inputs, charged = self.embedding(x, inputs, potentials[:place], rows)
            kept = []
            for block, before in zip(self.blocks, memories, strict=True):
                end = place + len(block.layers())  # type: ignore[operator]
                x, m, after = block(x, before, potentials[place:end], rows)
                kept.append(m)
                charged, place = (*charged, *after), end
            spikes, v = self.leave(x, potentials[place], rows)
        return spikes.to(kind), SpikingState(inputs, tuple(kept), (*charged, v))
