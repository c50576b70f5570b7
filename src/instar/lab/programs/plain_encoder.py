"""A plain transformer encoder that labels tokens: what Transformer Programs are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import DataError, ShapeError
from instar.interfaces import Examples, Labeller, Monitor
from instar.lab.programs.training import Try, answers, learn
from instar.lab.programs.vocabulary import Vocabulary


class EncoderBlock(nn.Module):
    """x + Attention(LN(x)), then x + W_2 relu(W_1 LN(x)); [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rise, self.fall = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None]).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(mixed))
        found: Tensor = x + self.dropout(self.fall(torch.relu(self.rise(self.norms[1](x)))))
        return found


class EncoderNetwork(nn.Module):
    """Embeddings of tokens and places, pre-norm blocks, a last norm and a linear classifier (of the mean token where pooled)."""

    def __init__(self, vocabulary: Vocabulary, causal: bool, *, width: int, layers: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.causal, self.pooled = causal, vocabulary.pooled
        self.tokens = nn.Embedding(len(vocabulary.tokens), width)
        self.places = nn.Embedding(vocabulary.length, width)
        self.blocks = nn.ModuleList([EncoderBlock(width, heads, hidden, dropout) for _ in range(layers)])
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, len(vocabulary.labels))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask [B, N] -> logits [B, N, classes], or [B, classes] where pooled."""
        N = ids.shape[1]
        x = self.tokens(ids) + self.places(torch.arange(N, device=ids.device))
        seen = mask[:, None, :].expand(-1, N, -1)
        if self.causal:
            seen = seen & torch.ones(N, N, dtype=torch.bool, device=ids.device).tril()
        for block in self.blocks:
            x = block(x, seen)
        x = self.norm(x)
        if self.pooled:
            x = x.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True)
        found: Tensor = self.classifier(x)
        return found


class PlainEncoder(Labeller):
    """A standard pre-norm transformer encoder, of the same layers and heads as the program it stands beside.

    Args:
        width: of the model. layers, heads: as they say. hidden: width of the feed-forward parts. dropout: after each part.
        lr: of Adam; gradients are clipped at a norm of 5. restarts, rare: as of `TransformerPrograms`.

    Raises ShapeError.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        hidden: int = 64,
        dropout: float = 0.0,
        lr: float = 5e-3,
        restarts: int = 1,
        rare: int = 0,
    ) -> None:
        if min(width, layers, heads, hidden, restarts) < 1 or width % heads or not 0 <= dropout < 1 or rare < 0:
            raise ShapeError(
                "A plain encoder expects positive sizes, a width that its heads divide, 0 ≤ dropout < 1 and rare ≥ 0; received "
                f"{width}, {layers}, {heads}, {hidden}, {restarts}, {dropout} and {rare}."
            )
        self.width, self.layers, self.heads, self.hidden = width, layers, heads, hidden
        self.dropout, self.lr, self.restarts, self.rare = dropout, lr, restarts, rare
        self.network: EncoderNetwork | None = None
        self.vocabulary: Vocabulary | None = None
        self.tries: list[Try] = []

    def fit(
        self,
        train: Examples,
        valid: Examples,
        *,
        steps: int,
        batch: int,
        seed: int = 0,
        monitor: Monitor | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """See `Labeller.fit`."""
        vocabulary = Vocabulary.of(train, valid, self.rare)
        sizes = {"width": self.width, "layers": self.layers, "heads": self.heads, "hidden": self.hidden}
        self.network, self.tries = learn(
            lambda: EncoderNetwork(vocabulary, train.causal, dropout=self.dropout, **sizes),
            lambda network, ids, mask, step, steps: network(ids, mask),
            lambda network: network.eval(),
            vocabulary,
            train,
            valid,
            lr=self.lr,
            steps=steps,
            batch=batch,
            restarts=self.restarts,
            seed=seed,
            clip=5.0,
            monitor=monitor,
            checkpoint=checkpoint,
        )
        self.vocabulary = vocabulary

    def predict(self, sequences: Sequence[Sequence[str]]) -> list[list[str]]:
        """The labels of largest logit."""
        if self.network is None or self.vocabulary is None:
            raise DataError("Nothing was learnt yet: call fit first.")
        return answers(self.network, self.vocabulary, sequences)

    def parameters(self) -> int:
        """Numbers of the network."""
        return 0 if self.network is None else sum(p.numel() for p in self.network.parameters())
