"""Transformer++: the blocks of the energy transformer with a head of logits, which answers in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.inference.norms import Norm, make_norm
from instar.inference.two_stream import Activation, TwoStreamBlock
from instar.interfaces import Predictor, Trace

IGNORED = -100


class TransformerPP(Predictor):
    r"""logits = W · RMSNorm(block_L(… block_1(E[tokens]))): what EBT is compared with. `steps` changes nothing.

    Args: as of `Ebt`. Shapes: tokens int64 [B, T] -> logits [B, T, V]. Raises ShapeError.
    Source: Gladstone et al. 2025 (arXiv 2507.02092), Touvron et al. 2023 (2302.13971).
    """

    def __init__(
        self,
        width: int = 64,
        *,
        vocabulary: int = 257,
        depth: int = 2,
        heads: int = 4,
        hidden: int = 0,
        norm: Norm = "rms",
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        if min(width, vocabulary, depth, heads) < 1 or hidden < 0:
            raise ShapeError("Transformer++ takes width, vocabulary, depth and heads of at least 1 and hidden ≥ 0.")
        self.width, self.vocabulary, self.steps = width, vocabulary, 1
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            TwoStreamBlock(width, heads, hidden or width, norm=norm, activation=activation) for _ in range(depth)
        )
        self.norm, self.head = make_norm(norm, width), nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)

    def logits(self, tokens: Tensor) -> Tensor:
        """[B, T, V], with their graph."""
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ShapeError(f"Expected integer tokens [B, T]; received {tuple(tokens.shape)} of {tokens.dtype}.")
        x, positions = self.embedding(tokens), torch.arange(tokens.shape[1], device=tokens.device)[None]
        for block in self.blocks:
            x, _ = block.observe(x, positions, None, None)  # type: ignore[operator]
        return self.head(self.norm(x))

    @torch.no_grad()
    def predict(self, x: Tensor, *, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Trace]:
        """Logits, whatever `steps` is: nothing iterates."""
        if steps < 0:
            raise ShapeError(f"steps is not negative; received {steps}.")
        return self.logits(x), Trace(torch.zeros(x.shape, dtype=torch.int64, device=x.device))

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, mean over counted positions."""
        return F.cross_entropy(self.logits(x).flatten(0, 1), target.flatten(), ignore_index=IGNORED)

    def example(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Ten random tokens a row and their successors."""
        tokens = torch.randint(self.vocabulary, (batch, 11), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]
