"""Transformer layers whose weights are written, not trained: moves and affine maps by attention, products and quotients by MLPs.

h [B, T, H] is a row of slots for each token. A layer computes a = h + W_O · heads(h), then a + W_2 gelu(W_1 LN(a)):
attention reads
h itself and LayerNorm stands before the MLP alone, as in section 3 of Akyürek et al. 2023 (arXiv 2211.15661).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from instar.errors import ShapeError

PAD = 1e6
"""N: the two padding rows ±N make LayerNorm a division by a known number, N √(2/H) to a relative ‖h‖²/2N²."""
SMALL = 1e-5
"""ε of a product: its relative error is of the order ε², and rounding that of 1e-16/ε."""
SHARP = 1e5
"""Attention's scores over the cosine of positions' codes: all weight falls on one token."""

Map = Mapping[str, Mapping[str, float]]
"""Slot that is written -> slots that are read, with factors."""
Product = tuple[str, str, str]
"""Slot that is added to, and the two whose product it gets."""


class Slots:
    """Names of rows. Each layout has the two padding rows, one that is always zero, and the two of a position's code."""

    def __init__(self, names: Sequence[str]) -> None:
        own = ["pad+", "pad-", "zero", "cos", "sin"]
        self.at = {name: i for i, name in enumerate([*own, *names])}
        if len(self.at) != len(own) + len(names):
            raise ShapeError("Every slot needs a name of its own.")

    def __len__(self) -> int:
        return len(self.at)


class ConstructedLayer(nn.Module):
    """One layer: two heads, of which one reads its own token and one the token `back` places before, and an MLP.

    Args:
        slots: the layout. angle: between the codes of neighbouring tokens. own, past: what the heads add to which slots; a
            token with nobody `back` places before reads the first. back: ≥ 1. products, copies (slot that is added to -> slot
            that is read): by the MLP, after LayerNorm; where another slot scales the pads (see `own`) they are divided by it.
    """

    def __init__(
        self,
        slots: Slots,
        angle: float,
        *,
        own: Map | None = None,
        past: Map | None = None,
        back: int = 1,
        products: Sequence[Product] = (),
        copies: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        H, at = len(slots), slots.at
        self.q, self.k = (nn.Linear(H, 4, bias=False, dtype=torch.float64) for _ in range(2))
        self.v = nn.Linear(H, 2 * H, bias=False, dtype=torch.float64)
        self.o = nn.Linear(2 * H, H, bias=False, dtype=torch.float64)
        self.norm = nn.LayerNorm(H, elementwise_affine=False, dtype=torch.float64)
        units = 3 * len(products) + 2 * len(copies or {})
        self.up = nn.Linear(H, units or 1, bias=False, dtype=torch.float64)
        self.down = nn.Linear(units or 1, H, bias=False, dtype=torch.float64)
        for weight in self.parameters():
            nn.init.zeros_(weight)
        with torch.no_grad():
            for head, (steps, written) in enumerate(((0, own or {}), (back, past or {}))):
                turn = steps * angle  # the query is the code of the token that is looked for
                c, s = math.cos(turn), math.sin(turn)
                rows = slice(2 * head, 2 * head + 2)
                columns = [at["cos"], at["sin"]]
                self.q.weight[rows, columns] = SHARP * torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
                self.k.weight[rows, columns] = torch.eye(2, dtype=torch.float64)
                for target, sources in written.items():
                    for source, factor in sources.items():
                        self.v.weight[head * H + at[target], at[source]] += factor
                self.o.weight[:, head * H : (head + 1) * H] = torch.eye(H, dtype=torch.float64)
            scale, unit = PAD * math.sqrt(2 / H), 0

            def hidden(sources: Mapping[str, float], target: str, out: float) -> None:
                nonlocal unit
                for source, factor in sources.items():  # LN subtracts the mean of all rows: so does the zero slot
                    self.up.weight[unit, at[source]] += scale * factor
                    self.up.weight[unit, at["zero"]] -= scale * factor
                self.down.weight[at[target], unit] += out
                unit += 1

            # ab = √(π/2) (gelu(a + b) - gelu(a) - gelu(b)) up to fourth order; gelu(z) - gelu(-z) = z.
            gain = math.sqrt(math.pi / 2) / SMALL**2
            for target, a, b in products:
                both = {a: SMALL, b: SMALL} if a != b else {a: 2 * SMALL}
                hidden(both, target, gain)
                hidden({a: SMALL}, target, -gain)
                hidden({b: SMALL}, target, -gain)
            for target, source in (copies or {}).items():
                hidden({source: 1.0}, target, 1.0)
                hidden({source: -1.0}, target, -1.0)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, T, H] -> [B, T, H], causal."""
        T = h.shape[1]
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.q(h), self.k(h), self.v(h)))  # [B, 2, T, 2 or H]
        scores = q @ k.mT
        later = torch.ones(T, T, dtype=torch.bool, device=h.device).triu(1)
        read = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
        h = h + self.o(read.transpose(1, 2).flatten(2))
        return h + self.down(nn.functional.gelu(self.up(self.norm(h))))


class ConstructedTransformer(nn.Module):
    """A blank token, then those of x̃ and ỹ, with codes of positions; layers; and a read-out of one slot at each token.

    The blank is what the first tokens find when they look back.

    Args: slots, layers (a layer may stand in several places: its weights are then shared); tokens: the longest sequence; x, y,
    out: the slots that tokens are written to and the one that is read. start: what slots hold at first.
    """

    def __init__(
        self,
        slots: Slots,
        layers: Sequence[ConstructedLayer],
        *,
        tokens: int,
        angle: float,
        x: Sequence[str],
        y: str,
        out: str,
        start: Mapping[str, float],
    ) -> None:
        super().__init__()
        H, at = len(slots), slots.at
        self.embed = nn.Linear(1 + len(x), H, bias=False, dtype=torch.float64)
        self.positions = nn.Parameter(torch.zeros(tokens + 1, H, dtype=torch.float64))
        self.layers = nn.ModuleList(layers)
        self.read_out = nn.Linear(H, 1, bias=False, dtype=torch.float64)
        turn = angle * torch.arange(tokens + 1, dtype=torch.float64)
        with torch.no_grad():
            nn.init.zeros_(self.embed.weight)
            nn.init.zeros_(self.read_out.weight)
            self.embed.weight[at[y], 0] = 1.0
            for i, name in enumerate(x):
                self.embed.weight[at[name], 1 + i] = 1.0
            self.positions[:, at["cos"]], self.positions[:, at["sin"]] = turn.cos(), turn.sin()
            for name, value in {"pad+": PAD, "pad-": -PAD, **start}.items():
                self.positions[:, at[name]] = value
            self.read_out.weight[0, at[out]] = 1.0

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, T, 1 + D] -> what is read at every token, [B, T]. Raises ShapeError for more than it was made for."""
        if tokens.shape[1] >= len(self.positions):
            raise ShapeError(f"Made for {len(self.positions) - 1} tokens; received {tokens.shape[1]}.")
        h = self.embed(nn.functional.pad(tokens, (0, 0, 1, 0))) + self.positions[: tokens.shape[1] + 1]
        for layer in self.layers:
            h = layer(h)
        return self.read_out(h[:, 1:]).squeeze(-1)
