"""What a transformer consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from instar.anatomy.linear import Linear


@dataclass(frozen=True)
class Block:
    """A layer of a transformer: attention and FFN."""

    index: int
    name: str
    module: nn.Module
    query: Linear | None
    """None, with key and value, where the three are one layer, `fused`."""
    key: Linear | None
    value: Linear | None
    fused: Linear | None
    attention_out: Linear
    ffn_in: Sequence[Linear]
    """One layer, two (gate and up), or both in one that is twice as wide."""
    ffn_out: Linear

    @property
    def attention_in(self) -> list[Linear]:
        """What reads the input of attention."""
        return [part for part in (self.query, self.key, self.value, self.fused) if part is not None]

    @property
    def linears(self) -> list[Linear]:
        """All linear layers."""
        return [*self.attention_in, self.attention_out, *self.ffn_in, self.ffn_out]


@dataclass(frozen=True)
class Anatomy:
    """A transformer: what its blocks are, how wide, and what stands around them."""

    blocks: Sequence[Block]
    width: int
    heads: int
    kv_heads: int
    """Fewer than heads where several of them share keys and values."""
    head_dim: int
    embedding: nn.Embedding | None
    final_norm: nn.Module | None
    """None where each block ends with its own norm (BERT): then nothing is left of a block that is taken out but that norm."""
    head: Linear | None
    """Of a language model."""
    tied: bool
    """Whether the head is the embedding."""
