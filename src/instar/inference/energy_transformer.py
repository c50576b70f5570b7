"""A transformer whose output is an energy: how well a candidate for the next position fits what was observed."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.inference.norms import Norm, make_norm
from instar.inference.two_stream import Activation, Conditioning, Past, TwoStreamBlock


class Observed(NamedTuple):
    """Keys and values of everything observed: computed once, read by every step of thinking."""

    layers: tuple[Past, ...]
    length: int
    """Observed positions, the leading token of the landscape not counted."""
    landscape: int


class EnergyTransformer(nn.Module):
    r"""E_i = w · Norm(block_L(… block_1(candidate_i | o_0 … o_i))), one number a position.

    Conditioning on the landscape l (the number of the step in training): none; time_embed, a learnt token before o_0, which
    moves all positions by one (with one landscape it is a memory token); adaln, an embedding of l gives shift, scale and gate of
    every block and shift and scale of the last norm; adaln_zero, the same with those maps and w zero at the start.

    Shapes: context [B, S, D] and candidates [B, N, D] -> energies [B, N]. Complexity: see `TwoStreamBlock`; candidates over what
    is observed already cost O(N D² + N S D) a block. Initialisation: xavier-normal linear maps. Raises ShapeError.
    Differs from the authors' code: the observed stream does not see candidates there either, but is computed again in every
    step; here it is `Observed`, computed once for each landscape. Source: Gladstone et al. 2025 (arXiv 2507.02092).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        hidden: int = 0,
        norm: Norm = "rms",
        activation: Activation = "silu",
        conditioning: Conditioning = "none",
        landscapes: int = 1,
    ) -> None:
        super().__init__()
        if min(width, depth, heads, landscapes) < 1 or hidden < 0:
            raise ShapeError(
                "An energy transformer takes width, depth, heads and landscapes of at least 1 and hidden ≥ 0; received "
                f"{width}, {depth}, {heads}, {landscapes} and {hidden}."
            )
        if conditioning == "none" and landscapes > 1:
            raise ShapeError(
                f"{landscapes} landscapes cannot be told apart without conditioning; take 1, or time_embed or adaln."
            )
        self.conditioning, self.landscapes = conditioning, landscapes
        self.blocks = nn.ModuleList(
            TwoStreamBlock(width, heads, hidden or width, norm=norm, activation=activation, conditioning=conditioning)
            for _ in range(depth)
        )
        self.norm = make_norm(norm, width)
        self.head = nn.Linear(width, 1, bias=False)
        self.index = nn.Embedding(landscapes, width) if conditioning != "none" else None
        self.modulation = nn.Linear(width, 2 * width) if conditioning.startswith("adaln") else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if conditioning == "adaln_zero":
            maps = [block.modulation for block in self.blocks] + [self.modulation, self.head]
            for zero in maps:
                nn.init.zeros_(zero.weight)  # type: ignore[union-attr,arg-type]

    def observe(self, context: Tensor, landscape: int = 0, past: Observed | None = None) -> Observed:
        """Keys and values of context [B, S, D], behind what was observed before. `past` stays as it is."""
        landscape = self._known(landscape)
        if past is not None and past.landscape != landscape:
            raise ShapeError(f"What was observed in landscape {past.landscape} cannot be continued in landscape {landscape}.")
        x, begin = context, self.lead
        if past is not None:
            begin += past.length
        elif self.lead:
            assert self.index is not None
            x, begin = torch.cat([self.index.weight[landscape].expand(len(x), 1, -1), x], 1), 0
        positions = torch.arange(begin, begin + x.shape[1], device=x.device)[None]
        condition, layers = self._condition(landscape), []
        for number, block in enumerate(self.blocks):
            x, layer = block.observe(x, positions, past.layers[number] if past is not None else None, condition)  # type: ignore[operator]
            layers.append(layer)
        length = context.shape[1] + (past.length if past is not None else 0)
        return Observed(tuple(layers), length, landscape)

    def energies(self, candidates: Tensor, observed: Observed, *, first: int = 0) -> Tensor:
        """Energies [B, N] of candidates for what follows observed positions first … first + N − 1."""
        N = candidates.shape[1]
        last = observed.length - 1
        if first < 0 or first + N - 1 > last:
            raise ShapeError(f"Candidates follow observed positions 0 … {last}; received {first} … {first + N - 1}.")
        positions = torch.arange(first + 1, first + N + 1, device=candidates.device)[None] + self.lead
        seen = None
        if not (N == 1 and first == last):
            columns = torch.arange(observed.length + self.lead, device=candidates.device)
            seen = columns < positions[0, :, None]
        condition, y = self._condition(observed.landscape), candidates
        for block, past in zip(self.blocks, observed.layers, strict=True):
            y = block.consider(y, positions, past, seen, condition)  # type: ignore[operator]
        y = self.norm(y)
        if self.modulation is not None and condition is not None:
            shift, scale = self.modulation(F.silu(condition)).chunk(2, -1)
            y = y * (1 + scale) + shift
        return self.head(y).squeeze(-1)

    def forward(self, context: Tensor, candidates: Tensor, landscape: int = 0) -> Tensor:
        """Energies [B, S] of a candidate behind every position of the context."""
        return self.energies(candidates, self.observe(context, landscape))

    def reference(self, context: Tensor, candidates: Tensor, landscape: int = 0) -> Tensor:
        """The same, position by position: an ordinary causal transformer reads o_0 … o_i, candidate_i and says E_i at its end."""
        landscape, found = self._known(landscape), []
        condition = self._condition(landscape)
        for i in range(context.shape[1]):
            x = torch.cat([context[:, : i + 1], candidates[:, i : i + 1]], 1)
            if self.lead:
                assert self.index is not None
                x = torch.cat([self.index.weight[landscape].expand(len(x), 1, -1), x], 1)
            positions = torch.arange(x.shape[1], device=x.device)[None]
            for block in self.blocks:
                x, _ = block.observe(x, positions, None, condition)  # type: ignore[operator]
            y = self.norm(x[:, -1])
            if self.modulation is not None and condition is not None:
                shift, scale = self.modulation(F.silu(condition)).chunk(2, -1)
                y = y * (1 + scale) + shift
            found.append(self.head(y))
        return torch.cat(found, 1)

    @property
    def lead(self) -> int:
        """Tokens before the first observed one."""
        return int(self.conditioning == "time_embed")

    def _known(self, landscape: int) -> int:
        if not 0 <= landscape < self.landscapes:
            raise ShapeError(f"There are landscapes 0 … {self.landscapes - 1}; received {landscape}.")
        return landscape

    def _condition(self, landscape: int) -> Tensor | None:
        return self.index.weight[landscape] if self.index is not None and self.modulation is not None else None
