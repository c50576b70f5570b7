"""What a change of encoder is tried on: items under both encoders, those that teach a head, and those that are searched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from instar.bench.seeds import derive, initialising, stream
from instar.compat import training
from instar.compat.backbone import Backbone
from instar.data.collection import Collection, Vectors
from instar.data.intents import clinc150_cases
from instar.errors import DataError
from instar.interfaces import Floats
from instar.problems.encoder_upgrades import MINILM, UPGRADES, Source, vectors
from instar.problems.kept import digest, kept

Places = NDArray[np.int64]
_PER_CLASS = {"train": 40, "val": 15, "test": 15}
_FIT, _VALID = 0.5, 0.125
"""Shares of documents that teach and that choose settings; the rest are the test."""
_LEAST = 20
"""Queries of a part below which it says nothing."""


@dataclass(frozen=True)
class World:
    """A collection under two encoders, in three parts that share no document."""

    collection: Collection
    old: Vectors
    new: Vectors
    inputs: Floats | None
    """[N, I], what heads with a network of their own read of a document, where it is not its new vector, which maps read."""
    fit: Places
    """Documents; with the queries that concern only them, they teach."""
    valid: Places
    test: Places

    def about(self, part: Places) -> Places:
        """Queries that concern only documents of a part."""
        inside = np.zeros(len(self.collection), dtype=bool)
        inside[part] = True
        return np.flatnonzero([bool(inside[r].all()) for r in self.collection.relevant or ()])


def texts_in_parts(collection: Collection, upgrade: str) -> World:
    """Documents at random, the same for every seed. Raises DataError for too few of them."""
    order = torch.randperm(len(collection), generator=stream(0, "parts")).numpy()
    first, second = round(_FIT * len(order)), round((_FIT + _VALID) * len(order))
    parts = [np.sort(part) for part in np.split(order, [first, second])]
    if min(map(len, parts)) < _LEAST:
        raise DataError(
            f"{collection.name} is too small: half of its {len(order)} documents teach, an eighth choose settings, the rest are "
            f"searched, and each part needs {_LEAST}."
        )
    kind = UPGRADES[upgrade]
    return World(collection, vectors(kind.old, collection), vectors(kind.new, collection), None, *parts)


def classes(old_classes: int, seed: int) -> World:
    """The experiment of the BT² paper on sentences: an old model that saw some of the 150 intents of CLINC150, a new one all.

    Both are networks of one hidden layer on features of MiniLM, of mean 0 and variance 1 over the texts that teach: the old one
    reads layer 1 and the new one layer 6, as do heads with networks of their own. Which classes the old model saw, and where both
    networks start, is drawn from the seed.
    """
    cases = [clinc150_cases(part, per_class=count, examples_per_class=0) for part, count in _PER_CLASS.items()]
    labels = [str(label) for case in cases for label in case.labels or ()]
    collection = Collection(
        "clinc150", [name for c in cases for name in c.ids], [text for c in cases for text in c.inputs], labels
    )
    names = sorted(set(labels))
    if not 2 <= old_classes <= len(names):
        raise DataError(f"old_classes expects 2 to {len(names)}; received {old_classes}.")
    drawn = torch.randperm(len(names), generator=stream(seed, "classes")).tolist()
    fit, valid, test = np.split(np.arange(len(labels)), np.cumsum([len(c) for c in cases])[:-1])
    low, high = (standardised(vectors(Source(MINILM, {"layer": layer}), collection).documents, fit) for layer in (1, 6))
    known = np.array([names.index(label) for label in labels])
    seen = fit[np.isin(known[fit], drawn[:old_classes])]
    sides = [
        Vectors(name, digest([name, str(seed)]), classifier(features, known, rows, derive(seed, name)))
        for name, features, rows in (("layer 1, some classes", low, seen), ("layer 6, all classes", high, fit))
    ]
    return World(collection, sides[0], sides[1], high, fit, valid, test)


def standardised(features: Floats, rows: Places) -> Floats:
    """Features of mean 0 and variance 1 over some rows; one that hardly varies (MiniLM has three that are always 0) becomes 0."""
    mean, deviation = features[rows].mean(0), features[rows].std(0)
    alive = deviation > 1e-3 * deviation.mean()
    return np.asarray(np.where(alive, features - mean, 0) / np.where(alive, deviation, 1), dtype=np.float32)


def classifier(features: Floats, labels: Places, rows: Places, seed: int, width: int = 64) -> Floats:
    """Unit vectors [N, width] of all features, by a network that learnt the classes of some `rows`; kept in the cache.

    L = CE(W h/‖h‖, y) with label smoothing 0.1: it learns on the unit vectors that are searched. Learnt on the outputs h, whose
    length says how sure the network is, the same vectors find less (top-1 0.75 to 0.85 against 0.87 with 75 classes).
    """
    taught, y = torch.from_numpy(features[rows]), torch.from_numpy(np.unique(labels[rows], return_inverse=True)[1])
    recipe = training.Recipe(weight_decay=2.0**-15)

    def make() -> dict[str, Floats]:
        with initialising(seed):
            network = nn.ModuleList([Backbone(features.shape[1], width), nn.Linear(width, int(y.max()) + 1, bias=False)])
        body, top = network

        def loss(places: Tensor) -> Tensor:
            return F.cross_entropy(top(F.normalize(body(taught[places]), dim=1)), y[places], label_smoothing=0.1)

        training.train(network, loss, len(rows), recipe=recipe, seed=seed)
        with torch.no_grad():
            return {"vectors": F.normalize(body(torch.from_numpy(features)), dim=1).numpy()}

    return kept(["classifier", 3, repr(recipe), width, seed, digest([features, labels, rows])], make)["vectors"]
