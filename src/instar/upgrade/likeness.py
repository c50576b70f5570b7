"""How alike two encoders' spaces are, without any label, and what kind of upgrade that makes it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from instar.interfaces import Floats

_ITEMS = 2000
_NEIGHBOURS = 10


def likeness(old: Floats, new: Floats, seed: int = 0) -> dict[str, float]:
    r"""What the vectors [N, O] and [N, D] of the same documents have in common, each from 0 to 1 (cosine from −1).

    cka: linear centred kernel alignment ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) (Kornblith et al. 2019, arXiv 1905.00414): 1 for a rotation.
    neighbours: share of the ten nearest documents that both have in common. cosine: mean cosine of a document's two vectors,
    where the widths are equal: near 1 only if the coordinates still mean the same. At most 2,000 documents are looked at.
    """
    chosen = np.random.default_rng(seed).permutation(len(old))[:_ITEMS]
    x, y = (torch.from_numpy(np.ascontiguousarray(side[chosen])) for side in (old, new))
    found = {"cka": _cka(x, y), "neighbours": _shared(x, y)}
    if x.shape[1] == y.shape[1]:
        found["cosine"] = float((x * y).sum(1).mean())
    return found


def kind_of_upgrade(found: Mapping[str, float]) -> str:
    """same coordinates, same structure, or unrelated: read off the vectors, not off the encoders' names."""
    if found.get("cosine", 0.0) >= 0.5:
        return "fine-tune: the coordinates still mean the same"
    if found.get("cosine", 0.0) >= 0.15 or found["cka"] >= 0.6 or found["neighbours"] >= 0.4:
        return "same family: a similar space in other coordinates"
    return "unrelated: another space"


def _cka(x: Tensor, y: Tensor) -> float:
    x, y = (v.double() - v.double().mean(0) for v in (x, y))
    cross, own_x, own_y = (float(torch.linalg.matrix_norm(a.T @ b)) for a, b in ((x, y), (x, x), (y, y)))
    return cross * cross / (own_x * own_y) if own_x * own_y > 0 else 0.0


def _shared(x: Tensor, y: Tensor) -> float:
    k = min(_NEIGHBOURS, len(x) - 1)
    if k < 1:
        return 0.0
    lists = []
    for v in (x, y):
        scores = v @ v.T
        scores.fill_diagonal_(-torch.inf)
        lists.append(torch.zeros(len(v), len(v), dtype=torch.bool).scatter_(1, scores.topk(k, dim=1).indices, True))
    return float((lists[0] & lists[1]).sum()) / (k * len(x))
