"""What the heads of a learner in context look at: the nearest example's label, or an earlier showing of the same example.

Bhattamishra et al. 2024 (arXiv 2310.03016), who count a head above 0.5 as one of nearest neighbours, or of prefix matching.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instar.errors import ShapeError
from instar.lab.icl.network import Block, MixerBackbone, PairNetwork
from instar.mixers.softmax import Softmax


def attention(network: PairNetwork, xs: Tensor, ys: Tensor) -> Tensor:
    """Weights of every layer [layers, B, H, 2N, 2N], rows the queries, of x_1, y_1, x_2, …

    Raises ShapeError for a network whose layers have no attention weights (recurrences, a backbone of `transformers`).
    """
    blocks = list(network.backbone.blocks) if isinstance(network.backbone, MixerBackbone) else []
    found = []
    with torch.no_grad():
        states = network.hidden(xs, ys) if blocks else []
        for block, h in zip(blocks, states, strict=False):
            assert isinstance(block, Block)
            if isinstance(block.mixer, Softmax):
                found.append(block.mixer.attention(block.mixer_norm(h)))
    if not found or len(found) < len(blocks):
        raise ShapeError("Heads are read from layers of softmax attention; this network has others.")
    return torch.stack(found)


def neighbours(network: PairNetwork, xs: Tensor, ys: Tensor, *, start: int = 1) -> Tensor:
    r"""Mean attention from x_i to the label of its nearest earlier example, i > `start`, [layers, H].

    The nearest has the largest cosine; of equals the earliest. xs [B, N, D], ys [B, N]. Raises ShapeError where N ≤ start < 1.
    """
    N = xs.shape[1]
    if not 1 <= start < N:
        raise ShapeError(f"Neighbours need start in 1 … N − 1; received {start} and {N} examples.")
    # Divided last: products of signs are whole numbers, whose ties the rounding of unit vectors would break.
    likeness = xs @ xs.mT / xs.norm(dim=-1).clamp_min(1e-12).unsqueeze(1)
    likeness = likeness.masked_fill(~torch.ones(N, N, dtype=torch.bool, device=xs.device).tril(-1), -torch.inf)
    nearest = likeness[:, start:].argmax(-1)  # [B, N - start]
    return _looked_at(network, xs, ys, start, torch.nn.functional.one_hot(nearest, N))


def prefixes(network: PairNetwork, xs: Tensor, ys: Tensor, *, times: int = 4) -> Tensor:
    """Mean attention from x_j to the labels of its earlier copies when the examples are shown `times` times, [layers, H].

    xs [B, N, D], ys [B, N]; the network must have been made for times · N examples. Raises ShapeError for times < 2.
    """
    if times < 2:
        raise ShapeError(f"A prefix that is shown again is shown at least twice; received {times}.")
    N = xs.shape[1]
    place = torch.arange(times * N, device=xs.device)
    copies = (place % N == (place % N).unsqueeze(1)) & (place < place.unsqueeze(1))
    return _looked_at(network, xs.repeat(1, times, 1), ys.repeat(1, times), N, copies[N:].expand(len(xs), -1, -1))


def _looked_at(network: PairNetwork, xs: Tensor, ys: Tensor, start: int, wanted: Tensor) -> Tensor:
    """wanted [B, N - start, N]: the examples whose labels count, of each query x from `start` on."""
    weights = attention(network, xs, ys)[..., ::2, 1::2][..., start:, :]
    return (weights * wanted.unsqueeze(1)).sum(-1).mean((1, 3))
