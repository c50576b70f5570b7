"""ProbSparse attention and distilling, the two parts of Informer, as modules."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.forecasting.layers import Attention


class ProbSparseAttention(Attention):
    r"""Attention for the u = c⌈ln T⌉ queries whose scores are least even; every other query takes the mean of the values.

        M(q) = max_j s_j − (1/T) Σ_j s_j over c⌈ln T⌉ keys j that are drawn for each place t, s_j = q · k_j

    With `causal`, the others take the sum of the values so far, which the authors' code does not divide.

    Args:
        width: D. heads: H. dropout: taken as other attention takes it and not used, as in the authors' code. causal: no query
            reads a later position. factor: c.

    Shapes: x [B, T, D] -> the same. In training the keys are drawn from the global generator; in use they are the same for every
    call of one length, so that a forecast is a function of its input (the authors' code draws there too). In exact arithmetic it
    is full attention where c⌈ln T⌉ ≥ T. 4·T·D² + (T + u)·c ln T·D multiply-adds and more; memory T·c ln T·D for the keys that are
    drawn. Source: Zhou et al. 2021 (arXiv 2012.07436), with the divisor T of the authors' code. Raises ShapeError.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, causal: bool = False, factor: float = 5.0) -> None:
        super().__init__(width, heads, causal=causal)
        if not factor > 0:
            raise ShapeError(f"The factor is positive; received {factor}.")
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # of one sequence only
        q, k, v = self._heads(x, x)
        T = x.shape[1]
        if (count := asked(T, self.factor)) == T:
            return self._joined(self._attended(q, k, v, torch.arange(T, device=x.device).expand(q.shape[:-1])))
        top = unevenness(q, k, self._drawn(T, count, x.device)).topk(count).indices  # [B, H, u]
        rest = v.cumsum(2) if self.causal else v.mean(2, keepdim=True).expand_as(v)
        chosen = top[..., None].expand(*top.shape, v.shape[-1])
        return self._joined(rest.scatter(2, chosen, self._attended(q.gather(2, chosen), k, v, top)))

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, places: Tensor) -> Tensor:
        """Full attention of queries that stand at `places`, [B, H, u]."""
        scores = (q / q.shape[-1] ** 0.5) @ k.mT
        if self.causal:
            later = torch.arange(k.shape[2], device=k.device) > places[..., None]
            scores = scores.masked_fill(later, -torch.inf)
        return scores.softmax(-1) @ v

    def _drawn(self, T: int, count: int, device: torch.device) -> Tensor:
        """Keys by place of the query, [T, c ln T]; several may be the same one."""
        if self.training:
            return torch.randint(T, (T, count), device=device)
        return torch.randint(T, (T, count), generator=torch.Generator().manual_seed(T)).to(device)


def asked(T: int, factor: float) -> int:
    """c⌈ln T⌉, one at least and T at most: keys that are drawn, and queries that attend."""
    return min(T, max(1, int(factor * math.ceil(math.log(T)))))


@torch.no_grad()
def unevenness(q: Tensor, k: Tensor, drawn: Tensor) -> Tensor:
    """M(q) = max − sum / T of the scores of each query with the keys drawn for its place: q, k [B, H, T, K], drawn [T, U]."""
    scores = (k[:, :, drawn] @ q[..., None]).squeeze(-1)
    return scores.amax(-1) - scores.sum(-1) / k.shape[2]


class Distilling(nn.Module):
    """Convolution over three rows around the circle, batch norm, ELU, and the largest of three at every second row.

    x [B, T, D] -> [B, ⌈T/2⌉, D]. 3·T·D² multiply-adds. Source: Zhou et al. 2021 (arXiv 2012.07436).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.elu(self.norm(self.convolution(x.mT)))
        return F.max_pool1d(y, 3, stride=2, padding=1).mT
