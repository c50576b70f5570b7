"""What each query should find, by what is known: relevant documents, those of its label, or the new encoder's own neighbours."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from instar.data.collection import Collection, Vectors
from instar.upgrade.ranks import Asked

Places = NDArray[np.int64]
_AT_ONCE = 256


def asked(collection: Collection, new: Vectors, gallery: Places, queries: Places, k: int) -> Asked:
    """The queries with what they should find among the documents of the gallery, without those that should find nothing."""
    inside = np.zeros(len(collection), dtype=bool)
    inside[gallery] = True
    if collection.relevant is not None:
        relevant = [r[inside[r]] for r in (collection.relevant[q] for q in queries)]
    elif collection.labels is not None:
        groups: dict[object, list[int]] = {}
        for place in np.flatnonzero(inside):
            groups.setdefault(collection.labels[place], []).append(int(place))
        members = {label: np.array(places, dtype=np.int64) for label, places in groups.items()}
        nobody = np.array([], dtype=np.int64)
        relevant = [m[m != q] for q, m in ((q, members.get(collection.labels[q], nobody)) for q in queries)]
    else:
        relevant = _neighbours(new, gallery, queries, k)
    kept = [i for i, r in enumerate(relevant) if len(r)]
    return Asked(queries[kept], [relevant[i] for i in kept], itself=collection.relevant is None)


def _neighbours(new: Vectors, gallery: Places, queries: Places, k: int) -> list[Places]:
    """The k documents that the new encoder itself finds for a document, without it."""
    rows, places = torch.from_numpy(new.documents[gallery]), torch.from_numpy(gallery)
    found: list[Places] = []
    for start in range(0, len(queries), _AT_ONCE):
        part = queries[start : start + _AT_ONCE]
        scores = torch.from_numpy(new.documents[part]) @ rows.T
        scores[torch.from_numpy(part).unsqueeze(1) == places] = -torch.inf
        found += list(gallery[scores.topk(min(k, len(gallery) - 1), dim=1).indices.numpy()])
    return found
