"""Classes of vectors: their means as a frozen classifier, and clusters where nobody knows the classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instar.bench.seeds import stream

_SAMPLE = 20_000
"""Vectors on which clusters are sought."""
_ROUNDS = 20
_ROWS = 8192


def means(vectors: Tensor, labels: Tensor) -> Tensor:
    """W [C, O]: the mean of the unit vectors [N, O] of each class 0 … C − 1, not made a unit vector again.

    The pseudo classifier of backward-compatible training: from old vectors of all classes of the new training set, also of those
    that the old model never saw. A class without items gets zeros.
    """
    found = vectors.new_zeros(int(labels.max()) + 1, vectors.shape[1])
    found.index_add_(0, labels, F.normalize(vectors, dim=1))
    return found / torch.bincount(labels, minlength=len(found)).clamp(min=1)[:, None]


def clusters(vectors: Tensor, count: int, seed: int) -> Tensor:
    """[N] labels 0 … C − 1, C ≤ count: k-means by cosine, seeded as k-means++ does (Arthur, Vassilvitskii 2007).

    Centres are sought on at most 20,000 vectors. Clusters that end empty are left out. O(N D count) time.
    """
    draw = stream(seed, "clusters")
    order = torch.randperm(len(vectors), generator=draw)[:_SAMPLE].to(vectors.device)
    sample = F.normalize(vectors[order], dim=1)
    centres = _seeds(sample, min(count, len(sample)), draw)
    for _ in range(_ROUNDS):
        found = means(sample, _nearest(sample, centres))
        filled = found.norm(dim=1) > 0
        moved = F.normalize(found[filled], dim=1)
        if moved.shape == centres.shape and torch.allclose(moved, centres, atol=1e-4):
            break
        centres = moved
    return torch.unique(_nearest(vectors, centres), return_inverse=True)[1]


def _seeds(sample: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Each next centre is drawn in proportion to the squared distance to the nearest one before."""
    chosen = [int(torch.randint(len(sample), (1,), generator=draw))]
    far = 1 - sample @ sample[chosen[0]]
    for _ in range(count - 1):
        far = far.clamp(min=0)
        if not bool(far.any()):
            break
        chosen.append(int(torch.multinomial(far.cpu(), 1, generator=draw)))
        far = torch.minimum(far, 1 - sample @ sample[chosen[-1]])
    return sample[chosen]


def _nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([(part @ centres.T).argmax(1) for part in vectors.split(_ROWS)])
