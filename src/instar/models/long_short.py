"""Long-short masked contrastive learning: a short stretch of a clip is to resemble the whole of it, and no other clip.

Wang, Zhu, Wang, Yu, Liu, Omar, Hamid 2023, "Selective Structured State-Spaces for Long-Form Video Understanding" (arXiv
2303.14526), with the momentum encoder, projector and predictor of MoCo v3, Chen, Xie, He 2021 (arXiv 2104.02057).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.models.momentum import MomentumCopy


class LongShort(nn.Module):
    r"""loss = ½ (InfoNCE(q(short), k(long)) + InfoNCE(q(long), k(short))), q = f_q(masked clip), k = f_k(masked clip).

    f_q is the encoder, a projector and a predictor; f_k the same without a predictor, following with momentum. Positives are two
    views of one clip, negatives the other clips of the batch. A share of each view's tokens, drawn anew, is masked.

    Args:
        encoder: (tokens [B, T, …], mask bool [B, T]) -> [B, width]; it is what is trained. width: of what it gives.
        momentum: of f_k. temperature: of InfoNCE. long_out, short_out: shares of tokens that are masked, in [0, 1).

    Raises ShapeError.
    """

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        *,
        momentum: float = 0.99,
        temperature: float = 0.1,
        long_out: float = 0.5,
        short_out: float = 0.25,
    ) -> None:
        super().__init__()
        if not temperature > 0 or not 0 <= long_out < 1 or not 0 <= short_out < 1:
            raise ShapeError(
                "temperature must be positive and the shares that are masked in [0, 1); "
                f"received temperature={temperature}, long_out={long_out}, short_out={short_out}."
            )
        self.temperature, self.long_out, self.short_out = temperature, long_out, short_out
        self.query = _Projected(encoder, width)
        self.predictor = _perceptron(width)
        self.key = MomentumCopy(self.query, momentum)

    def forward(self, long: Tensor, short: Tensor) -> Tensor:
        """The loss of views [B, T, …] of the same clips."""
        if self.training:
            self.key.follow(self.query)
        masks = [_mask(long, self.long_out), _mask(short, self.short_out)]
        q_long, q_short = (self.predictor(self.query(view, mask)) for view, mask in zip((long, short), masks, strict=True))
        k_long, k_short = (self.key(view, mask) for view, mask in zip((long, short), masks, strict=True))
        return (info_nce(q_short, k_long, self.temperature) + info_nce(q_long, k_short, self.temperature)) / 2


def _mask(view: Tensor, share: float) -> Tensor:
    return left_in(view.shape[0], view.shape[1], share).to(view.device)


def info_nce(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """-mean_i log softmax_j(⟨q_i, k_j⟩ / temperature)_i of rows [B, P] made unit vectors."""
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT / temperature
    return F.cross_entropy(scores.to(torch.promote_types(scores.dtype, torch.float32)), torch.arange(len(q), device=q.device))


def left_in(batch: int, tokens: int, share: float) -> Tensor:
    """bool [B, T]: all but ⌊share T⌋ tokens of each row, drawn by torch's generator."""
    return torch.rand(batch, tokens).argsort(dim=1).argsort(dim=1) >= int(share * tokens + 1e-9)


class _Projected(nn.Module):
    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, _perceptron(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.projector(self.encoder(x, mask))


def _perceptron(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
