"""Which rows to re-encode first: recall on the way from layer 3 of all-MiniLM-L6-v2 to its last, in three orders.

python benchmarks/backfill_order.py        (2 minutes, more where vectors are not in the cache; needs SQuAD and CLINC150)

Half of the documents teach a ridge map and, on a held-out tenth of them, which stored vectors it explains badly; the others are
an index, which is re-encoded in the order that `instar encoder backfill --order …` takes. Old rows are asked through the map, new
ones by the new encoder, and both lists are merged as `--fusion` says. Queries come at random (`even`), or some of them far more
often than others (`zipf`: the i-th of a random order in proportion to 1 / i); `most-queried` counts how often a row was right in
a log of past queries, ten for each there is, drawn in the same way. Five seeds draw orders, popularity and logs.

`gain` is recall minus that of the random order, over the shares from 10 to 90 %, with its 95 % interval over queries in their
blocks (questions on one sentence; sentences of one class). Written to `results/backfill_order.json`.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instar.bench import environment
from instar.compat import learning
from instar.compat import pairs as pairing
from instar.data.collecting import open_collection
from instar.data.collection import Collection, Vectors
from instar.gate.intervals import mean_interval
from instar.interfaces import Generation
from instar.problems.encoder_upgrades import UPGRADES, vectors
from instar.retrieval import order as ordering
from instar.retrieval.fusion import Calibration
from instar.retrieval.opening import open_index
from instar.upgrade import ranks as ranking
from instar.upgrade import truth
from instar.upgrade.ranks import Asked, Gallery, Scores

RESULTS = Path(__file__).parent / "results"
K, BUCKETS, SEEDS, LOG = 10, 10, 5, 10
ORDERS = ("random", "most-queried", "least-certain")
Floats = NDArray[np.float64]


def main() -> None:
    started = time.perf_counter()
    found = [measured("squad:test", 4000), measured("clinc150", 4500)]
    record = {
        "command": "python benchmarks/backfill_order.py",
        "upgrade": "layer 3 of all-MiniLM-L6-v2 -> its last layer, by a ridge map",
        "k": K,
        "seeds": SEEDS,
        "collections": found,
        "environment": environment.describe(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    (RESULTS / "backfill_order.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def measured(data: str, sample: int) -> dict[str, Any]:
    """Curves of one collection."""
    collection = open_collection(data, sample=sample)
    old, new = (vectors(source, collection) for source in (UPGRADES["family"].old, UPGRADES["family"].new))
    places = np.random.default_rng(0).permutation(len(collection))
    teach, gallery = np.sort(places[: len(places) // 2]), np.sort(places[len(places) // 2 :])
    pairs = pairing.of(old.documents[teach], new.documents[teach])
    fitted = learning.fit("ridge", pairs, old=old.fingerprint)
    assert fitted.uncertainty is not None
    assert fitted.calibration is not None
    asked, blocks = queries(collection, new, gallery)
    before, after, asking = (
        torch.from_numpy(part) for part in (old.documents, new.documents, new.documents if new.queries is None else new.queries)
    )
    with torch.no_grad():
        mapped = fitted.head.compatible(asking)
    ids = [collection.ids[place] for place in gallery]
    made: dict[str, Any] = {"fusion": {}}
    with tempfile.TemporaryDirectory() as folder:
        stamp = Generation(0, old.fingerprint, old.dim)
        with open_index(f"exact:{folder}/rows", create=stamp) as index:
            index.add(ids, old.documents[gallery], 0)
            named = {name: int(place) for name, place in zip(ids, gallery, strict=True)}

            def arranged(order: ordering.Order, seed: int) -> NDArray[np.int64]:
                return np.array([named[str(name)] for name in ordering.arrange(index, ids, order, seed)], dtype=np.int64)

            for fusion in ("calibrated", "cosine"):
                scale = Calibration(1, fitted.calibration.quantiles) if fusion == "calibrated" else None
                marks: dict[str, dict[str, list[Floats]]] = {kind: {name: [] for name in ORDERS} for kind in ("even", "zipf")}
                for seed in range(SEEDS):
                    for kind, weights, counts in traffic(asked, collection, seed):
                        orders = (ordering.random, ordering.most_queried(counts), ordering.least_certain(fitted.uncertainty))
                        for name, order in zip(ORDERS, orders, strict=True):
                            rows = torch.from_numpy(at := arranged(order, seed))
                            scores = (normal(mapped), normal(before)[rows].T), (normal(asking), normal(after)[rows].T)
                            recall = recalled(asked, Gallery.of(at, BUCKETS), *scores, scale)
                            marks[kind][name].append(recall * weights[:, None])
                made["fusion"][fusion] = {kind: said(of, blocks) for kind, of in marks.items()}
    made |= {
        "data": data,
        "rows": len(gallery),
        "queries": len(asked.queries),
        "pairs": fitted.quality.fitted,
        "rank_correlation_of_estimated_and_real_residuals": fitted.quality.uncertainty,
    }
    return made


def queries(collection: Collection, new: Vectors, gallery: NDArray[np.int64]) -> tuple[Asked, NDArray[np.int64]]:
    """The queries about rows of the index alone, and which of them belong together."""
    inside = np.isin(np.arange(len(collection)), gallery)
    if collection.relevant is None:
        chosen = gallery
    else:
        chosen = np.flatnonzero([bool(inside[right].all()) for right in collection.relevant])
    asked = truth.asked(collection, new, gallery, chosen, K)
    named = [collection.labels[q] if collection.labels else int(r[0]) for q, r in zip(asked.queries, asked.relevant, strict=True)]
    return asked, np.unique(named, return_inverse=True)[1]


def traffic(asked: Asked, collection: Collection, seed: int) -> Any:
    """(kind, weights [Q] of mean 1, how often each row was right in the log)."""
    total = len(asked.queries)
    for number, kind in enumerate(("even", "zipf")):
        draw = np.random.default_rng([seed, number])
        weights = np.ones(total) if kind == "even" else 1.0 / (1 + draw.permutation(total))
        weights *= total / weights.sum()
        counts: dict[str, float] = {}
        for query in draw.choice(total, LOG * total, p=weights / total):
            for place in asked.relevant[query]:
                counts[collection.ids[place]] = counts.get(collection.ids[place], 0.0) + 1
        yield kind, weights, counts


def recalled(
    asked: Asked, gallery: Gallery, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], scale: Calibration | None
) -> Floats:
    """[Q, stages]"""

    def scores(sides: tuple[Tensor, Tensor], scale: Calibration | None) -> Scores:
        def by(chosen: NDArray[np.int64]) -> Tensor:
            found = sides[0][torch.from_numpy(chosen)] @ sides[1]
            return found if scale is None else torch.from_numpy(scale(0, found.numpy()))

        return by

    (found,) = ranking.ranks(asked, gallery, [(scores(old, scale), "scores")], scores(new, None))
    return ranking.recall(found, K)


def said(marks: dict[str, list[Floats]], blocks: NDArray[np.int64]) -> dict[str, Any]:
    """Curves, those of each seed, and what an order gains over the random one."""
    mean = {name: np.mean(of, axis=0) for name, of in marks.items()}
    found: dict[str, Any] = {"share": [i / BUCKETS for i in range(BUCKETS + 1)]}
    for name, of in mean.items():
        row: dict[str, Any] = {"recall": [round(float(v), 4) for v in of.mean(0)]}
        if name != "random":
            won = mean_interval((of - mean["random"])[:, 1:-1].mean(1), blocks)
            seeds = [(a - b)[:, 1:-1].mean() for a, b in zip(marks[name], marks["random"], strict=True)]
            row["gain"] = {"value": won.value, "low": won.low, "high": won.high, "by_seed": [round(float(v), 4) for v in seeds]}
        found[name] = row
    return found


def normal(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


if __name__ == "__main__":
    main()
