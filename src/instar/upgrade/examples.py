"""Queries whose first results change, for people to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instar.upgrade.arms import KEEP, TWO_ENCODERS, Arm
from instar.upgrade.measure import Bench
from instar.upgrade.ranks import Asked

_SHOWN = 6
_LOOKED_AT = 200
_FIRST = 3


def examples(bench: Bench, arms: Mapping[str, Arm], now: str, asked: Asked) -> list[dict[str, Any]]:
    """Held-out queries whose best document differs between old and new: as found by the old encoder, the arm `now` and the new.

    As many that become right as that become wrong, where there are. Nothing where the texts are unknown.
    """
    texts = bench.collection.texts
    questions = texts if asked.itself else bench.collection.queries
    if texts is None or questions is None or not len(asked.queries):
        return []
    chosen = asked.queries[:_LOOKED_AT]
    rows = torch.from_numpy(bench.gallery.order)
    old_rows = torch.from_numpy(bench.old.documents)[rows]
    plain, arm = arms[TWO_ENCODERS], arms.get(now, arms[KEEP])

    def first(queries: Tensor, documents: Tensor) -> np.ndarray:
        scores = queries[torch.from_numpy(chosen)] @ documents.T
        if asked.itself:
            scores[rows.unsqueeze(0) == torch.from_numpy(chosen).unsqueeze(1)] = -torch.inf
        return np.asarray(bench.gallery.order[scores.topk(min(_FIRST, scores.shape[1]), dim=1).indices.numpy()])

    lists = {
        "old": first(plain.old_queries, old_rows),
        "arm": first(arm.old_queries, old_rows),
        "new": first(plain.new_queries, plain.new_documents[rows]),
    }
    better: list[int] = []
    worse: list[int] = []
    for row, relevant in enumerate(asked.relevant[:_LOOKED_AT]):
        before, after = (int(lists[side][row][0]) in relevant for side in ("old", "new"))
        if after and not before:
            better.append(row)
        elif before and not after:
            worse.append(row)
    half = _SHOWN // 2
    taken = sorted(better[: max(half, _SHOWN - len(worse))] + worse[: max(half, _SHOWN - len(better))])[:_SHOWN]

    def shown(row: int) -> dict[str, Any]:
        found = {side: [texts[i] for i in places[row]] for side, places in lists.items()}
        right = [texts[i] for i in asked.relevant[row][:_FIRST]]
        return {"query": questions[chosen[row]], "relevant": right, "becomes": "right" if row in better else "wrong", **found}

    return [shown(row) for row in taken]
