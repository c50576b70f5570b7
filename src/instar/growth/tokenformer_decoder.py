"""The TokenFormer decoder: a transformer whose every projection is Pattention.

Wang et al. 2024 (arXiv 2410.23168).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.growth.pattention import STD, Mode, Pattention
from instar.mixers.positions import rotate
from instar.mixers.softmax import Softmax
from instar.models.decoder import Decoder
from instar.state import State

KINDS = ("query", "key", "value", "output", "feed")
"""The Pattentions of a block."""
ROTATED = 0.25
"""The part of each head's coordinates that positions rotate."""
_EPS = 1e-5
Counts = Mapping[str, Sequence[int]]


class TokenFormerAttention(Softmax):
    """Causal softmax attention with scale 1/√K whose four projections are Pattention; the first quarter of a head is rotated.

    Args:
        width, heads: D and H. layers: {"query": Pattention, …}. rope_base: as of `Softmax`, of which cache, padding, packing and
            streaming are. Raises ShapeError.
    """

    def __init__(self, width: int, *, heads: int, layers: Mapping[str, Pattention], rope_base: float = 10000.0) -> None:
        super().__init__(width, heads=heads, rope_base=rope_base)
        self.q_proj, self.k_proj = layers["query"], layers["key"]  # type: ignore[assignment]
        self.v_proj, self.o_proj = layers["value"], layers["output"]  # type: ignore[assignment]
        self.rotated = int(self.head_width * ROTATED) // 2 * 2

    def _rotated(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        if not self.rotated:
            return q, k
        turned = rotate((q[..., : self.rotated], k[..., : self.rotated]), positions, self.rope_base)
        return tuple(
            F.pad(part, (0, whole.shape[-1] - self.rotated)) + F.pad(whole[..., self.rotated :], (self.rotated, 0))
            for part, whole in zip(turned, (q, k), strict=True)
        )


class TokenFormerBlock(nn.Module):
    """h = x + attention(n(x)); y = h + Pattention(n(h)); n is LayerNorm without scale and shift."""

    def __init__(self, attention: TokenFormerAttention, feed: Pattention) -> None:
        super().__init__()
        self.mixer = attention
        self.feed = feed

    def forward(self, x: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        mixed, state = self.mixer(_normal(x), state, mask=mask, reset=reset)
        x = x + mixed
        return x + self.feed(_normal(x)), state


class TokenFormer(Decoder):
    r"""A causal language model of Pattentions: logits = E · LayerNorm(block_L(… block_1(E[tokens]))).

    Args:
        vocabulary: number of tokens. width: D. depth: L blocks. heads: H of width D / H.
        n: pairs of each attention projection; 0 means D. feed: pairs of each feed-forward Pattention; 0 means 4 D.
        mode: of every Pattention. tied: whether the head is the embedding. rope_base: of the rotation of the first quarter of
            each head. layers: for each block the pairs of each kind by growth, {"query": [96, 96], …}, instead of n and feed.

    Shapes, state, generation and files as of `Decoder`. A layer has 2 D (3 n + n + feed) parameters, and attention between tokens
    stays at width D however many pairs there are. Start: keys, embedding and head N(0, 0.02), values N(0, 2 / (L √D)). Raises
    ShapeError. Differs from the released code: see the card of `tokenformer`.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 128,
        depth: int = 2,
        *,
        heads: int = 4,
        n: int = 0,
        feed: int = 0,
        mode: Mode = "l2_norm_gelu",
        tied: bool = True,
        rope_base: float = 10000.0,
        layers: Sequence[Counts] | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if min(vocabulary, width, depth, heads) < 1 or min(n, feed) < 0:
            raise ShapeError(
                "A TokenFormer expects vocabulary, width, depth and heads of at least 1 and n and feed of at least 0; received "
                f"{vocabulary}, {width}, {depth}, {heads}, {n} and {feed}."
            )
        if layers is None:
            layers = [{kind: [(feed or 4 * width) if kind == "feed" else (n or width)] for kind in KINDS}] * depth
        if len(layers) != depth or any(set(counts) != set(KINDS) for counts in layers):
            raise ShapeError(f"layers expects pairs of {', '.join(KINDS)} for each of {depth} blocks; received {layers!r:.300}.")
        self.vocabulary, self.width, self.depth, self.tied = vocabulary, width, depth, tied
        self.heads, self.mode, self.rope_base = heads, mode, rope_base
        self.amplitude = None
        self.embedding = nn.Embedding(vocabulary, width)
        std = 2 / (depth * width**0.5)

        def block(counts: Counts) -> TokenFormerBlock:
            made = {kind: Pattention(width, width, counts[kind], mode=mode, value_std=std) for kind in KINDS}
            return TokenFormerBlock(TokenFormerAttention(width, heads=heads, layers=made, rope_base=rope_base), made["feed"])

        self.blocks = nn.ModuleList(block(counts) for counts in layers)
        self.norm = nn.LayerNorm(width, eps=_EPS)  # type: ignore[assignment]
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.embedding.weight, std=STD)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=STD)
        self.describe()

    def pattentions(self) -> Iterator[tuple[str, Pattention]]:
        """Every Pattention as a plan names it: `blocks.0.query`, …, `blocks.0.feed`."""
        for number, block in enumerate(self.blocks):
            mixer = block.mixer
            parts = (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.o_proj, block.feed)  # type: ignore[union-attr]
            yield from ((f"blocks.{number}.{kind}", part) for kind, part in zip(KINDS, parts, strict=True))  # type: ignore[misc]

    def describe(self) -> None:
        """Bring `config` up to date; whoever changes the pairs calls it."""
        counts = dict(self.pattentions())
        self.config: dict[str, Any] | None = {
            **{"vocabulary": self.vocabulary, "width": self.width, "depth": self.depth, "heads": self.heads},
            **{"mode": self.mode, "tied": self.tied, "rope_base": self.rope_base},
            "layers": [{kind: counts[f"blocks.{i}.{kind}"].counts for kind in KINDS} for i in range(self.depth)],
        }

    def anneal(self, fraction: float) -> None:
        """`Pattention.anneal` of all: call it with each step of a warm-up after growth with tau = "anneal"."""
        for _, part in self.pattentions():
            part.anneal(fraction)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, with pairs and τ² of each layer, and `model.safetensors`. Raises OutputError."""
        from instar.growth import saved

        saved.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TokenFormer:
        """Read what `save_pretrained` wrote. Raises CheckpointError; nothing is unpickled."""
        from instar.growth import saved

        return saved.load(Path(folder))


def _normal(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=_EPS)
