"""What broke, grouped by likeness, for a person to read."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from instar.gate.flips import Flips
from instar.gate.pairing import Pairs
from instar.gate.result import Broken, Group
from instar.gate.values import canonical

MOST = 1000
"""Items that are grouped: the worst ones. All are named in the record."""
_ITEMS = 50
"""Items of a group that are printed."""
_TEXT = 2000
"""Characters of a text that are kept for a page."""
_APART = {"text": 0.85, "embedding": 0.5}
"""Cosine distance beyond which groups are not joined (average linkage)."""


def broken(pairs: Pairs, flips: Flips, places: NDArray[np.int64]) -> tuple[list[Group], list[str]]:
    """Groups of the items that the new version does worse than the old one, and the ids of all of them.

    `flips` holds the answered items, `places` where they stand in `pairs`. Worst first: the items that fell furthest, and among
    equals those that every old run got right.
    """
    worse = np.flatnonzero(flips.negative)
    drop = flips.before - flips.after
    order = worse[np.lexsort((worse, -flips.excess[worse], -drop[worse]))]
    ids = [pairs.ids[places[i]] for i in order]
    chosen = order[:MOST]
    if not len(chosen):
        return [], ids
    items = [_item(pairs, int(places[i]), float(drop[i]), bool(flips.certain[i])) for i in chosen]
    words = [_words(item) for item in items]
    codes = _cluster(pairs, places[chosen], words)
    groups = []
    common = Counter(word for found in words for word in set(found))
    for code in np.unique(codes):
        inside = np.flatnonzero(codes == code)
        title = "others, each unlike the rest" if code < 0 else _title([words[i] for i in inside], common, len(items))
        total = float(sum(items[i].drop for i in inside))
        groups.append(Group(title, len(inside), total, [items[i] for i in inside[:_ITEMS]]))
    alone = groups[0] if codes.min() < 0 else None
    ordered = sorted((g for g in groups if g is not alone), key=lambda g: (-g.drop, -g.size, g.title))
    return [*ordered, *([alone] if alone else [])], ids


def _item(pairs: Pairs, i: int, drop: float, always: bool) -> Broken:
    label = pairs.labels[i] if pairs.labels is not None else None
    return Broken(
        id=pairs.ids[i],
        input=None if pairs.inputs is None else _cut(pairs.inputs[i]),
        label=None if label is None else _cut(canonical(label)),
        before=_cut(canonical(pairs.old.outputs[i])),
        after=_cut(canonical(pairs.new.outputs[i])),
        drop=drop,
        always=always,
    )


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]} … (the first {_TEXT} of {len(text)} characters)"


def _words(item: Broken) -> list[str]:
    """What an item is about, and what was made of it."""
    text = item.input if item.input is not None else " ".join(filter(None, (item.label, item.before)))
    found = list(re.findall(r"[^\W\d_]{2,}", text[:_TEXT].lower()))
    said = [f"right: {item.label}"] if item.label is not None and len(item.label) <= 60 else []
    return found + said + ([f"said: {item.after}"] if len(item.after) <= 60 else [])


def _cluster(pairs: Pairs, places: NDArray[np.int64], words: list[list[str]]) -> NDArray[np.int64]:
    """A code for each item, −1 for items that are alone."""
    from scipy.cluster import hierarchy

    n = len(places)
    if n == 1:
        return np.zeros(1, dtype=np.int64)
    embeddings = pairs.old.embeddings if pairs.old.embeddings is not None else pairs.new.embeddings
    points, apart = (
        (embeddings[places].astype(np.float64), _APART["embedding"])
        if embeddings is not None
        else (_tfidf(words), _APART["text"])
    )
    points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    near = points @ points.T
    distance = np.clip(1 - near[np.triu_indices(n, 1)], 0, 2)
    codes = hierarchy.fcluster(hierarchy.linkage(distance, "average"), apart, "distance").astype(np.int64)
    sizes = np.bincount(codes)
    return np.where(sizes[codes] > 1, codes, -1)


def _tfidf(words: list[list[str]]) -> NDArray[np.float64]:
    """Word counts damped by their logarithm and weighted by rarity, over the words that two items or more share."""
    common = Counter(word for found in words for word in set(found))
    vocabulary = {word: i for i, (word, n) in enumerate(common.most_common(4000)) if n > 1}
    points = np.zeros((len(words), max(1, len(vocabulary))))  # without a word in common: like nobody
    for row, found in enumerate(words):
        for word, n in Counter(found).items():
            if word in vocabulary:
                points[row, vocabulary[word]] = (1 + np.log(n)) * np.log((1 + len(words)) / common[word])
    return points


def _title(words: list[list[str]], common: Counter[str], total: int) -> str:
    """The three words that are most typical of a group: frequent in it and rare elsewhere."""
    inside = Counter(word for found in words for word in set(found))
    size = len(words)

    def weight(word: str) -> float:
        here, elsewhere = inside[word] / size, (common[word] - inside[word]) / max(1, total - size)
        return (here - elsewhere) * float(np.log((1 + total) / common[word]))  # words that stand everywhere tell nothing

    best = sorted((w for w, n in inside.items() if n > 1), key=lambda w: (-weight(w), -len(w), w))[:3]
    return " · ".join(best) or "alike in what was asked"
