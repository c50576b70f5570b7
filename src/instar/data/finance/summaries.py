"""Extractive summaries: which sentences of an article say what it is about. All methods are small, exact and deterministic."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from instar.data.finance.words import sentences, words
from instar.errors import ShapeError, UnknownNameError

Weights = NDArray[np.float64]
_LONGEST = 400
"""Sentences of one article that are weighed: the graph methods cost their square, the LSA their cube."""
_DAMPING = 0.85
_COSINE = 0.1
"""LexRank: sentences less alike than this are no neighbours."""
_GAP = 4
"""Luhn: insignificant words between significant ones of a cluster."""
_STOP_WORDS = """
a about after again all also am an and any are as at be because been before being between both but by can could did do
does doing down during each few for from further had has have having he her here hers him his how i if in into is it its
itself just me more most my no nor not now of off on once only or other our out over own s said same she should so some
such t than that the their them then there these they this those through to too under until up very was we were what
when where which while who whom why will with would you your
"""
_STOP = frozenset(_STOP_WORDS.split())


def summarise(text: str, method: str, count: int = 3, tickers: Sequence[str] = ()) -> str:
    """At most `count` sentences of a text, in its own order.

    Args:
        method: lsa, luhn, textrank, lexrank or lead.
        tickers: where some are given, sentences count as FNSPID's do: 1 for each of these words in it, and 1 where the method
            would have picked it; equal ones by the method's weight, then by place.

    Raises UnknownNameError, ShapeError.
    """
    if method not in METHODS:
        raise UnknownNameError.among("method of summaries", method, METHODS)
    if count < 1:
        raise ShapeError(f"A summary has at least one sentence; received {count}.")
    found = sentences(text)[:_LONGEST]
    if len(found) <= count:
        return " ".join(found)
    weights = METHODS[method](found)
    order = sorted(range(len(found)), key=lambda place: (-round(float(weights[place]), 10), place))
    if tickers:
        picked = set(order[:count])
        bonus = [sum(bool(re.search(rf"(?<!\w){re.escape(t)}(?!\w)", s)) for t in tickers) for s in found]
        order.sort(key=lambda place: -(bonus[place] + (place in picked)))
    return " ".join(found[place] for place in sorted(order[:count]))


def lead(found: Sequence[str]) -> Weights:
    """The first sentences: news puts first what matters, and this is hard to beat."""
    return -np.arange(len(found), dtype=np.float64)


def lsa(found: Sequence[str]) -> Weights:
    """Latent semantic analysis (Steinberger and Ježek 2004): [N] with

        A = U Σ Vᵀ of the TF-IDF matrix [words, sentences]        weight_n = sqrt(Σ_r σ_r² v_rn²)

    over the r topics with σ_r ≥ σ_1 / 2. O(words · N²).
    """
    matrix = _tf_idf(found)
    if not matrix.size:
        return lead(found)
    _, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    kept = sigma >= sigma[0] / 2
    return np.sqrt(((sigma[kept, None] * right[kept]) ** 2).sum(0))


def luhn(found: Sequence[str]) -> Weights:
    """Luhn (1958): [N] with significant² / length of the densest cluster, words of which are significant if they are frequent.

    A cluster begins and ends with significant words, at most 4 others between two of them. Significant are content words that
    occur at least twice; of a text without repetition, all.
    """
    contents = [_content(sentence, keep=True) for sentence in found]
    counts = Counter(word for sentence in contents for word in sentence if word)
    significant = {word for word, many in counts.items() if many > 1} or set(counts)
    return np.array([_densest([place for place, word in enumerate(s) if word in significant]) for s in contents])


def textrank(found: Sequence[str]) -> Weights:
    """TextRank (Mihalcea and Tarau 2004): PageRank, damping 0.85, of shared words / (log |a| + log |b|)."""
    bags = [set(_content(sentence)) for sentence in found]
    logs = np.log([max(len(bag), 1) for bag in bags])
    scale = logs[:, None] + logs[None]
    shared = np.array([[len(a & b) for b in bags] for a in bags], np.float64)
    return _rank(np.divide(shared, scale, out=np.zeros_like(shared), where=scale > 0))


def lexrank(found: Sequence[str]) -> Weights:
    """LexRank (Erkan and Radev 2004): PageRank, damping 0.85, of which sentences have a TF-IDF cosine of 0.1 or more."""
    matrix = _tf_idf(found)
    if not matrix.size:
        return lead(found)
    unit = matrix / np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
    return _rank((unit.T @ unit >= _COSINE).astype(np.float64))


METHODS: dict[str, Callable[[Sequence[str]], Weights]] = {
    "lsa": lsa,
    "luhn": luhn,
    "textrank": textrank,
    "lexrank": lexrank,
    "lead": lead,
}


def _content(sentence: str, keep: bool = False) -> list[str]:
    """Content words; with `keep`, "" in the place of each other word."""
    found = [word if word not in _STOP else "" for word in words(sentence)]
    return found if keep else [word for word in found if word]


def _tf_idf(found: Sequence[str]) -> Weights:
    """[words, sentences]: count · (1 + ln(N / sentences with the word))."""
    bags = [Counter(_content(sentence)) for sentence in found]
    spread = Counter(word for bag in bags for word in bag)
    rows = {word: place for place, word in enumerate(sorted(spread))}
    matrix = np.zeros((len(rows), len(found)))
    for column, bag in enumerate(bags):
        for word, many in bag.items():
            matrix[rows[word], column] = many * (1 + np.log(len(found) / spread[word]))
    return matrix


def _densest(places: Sequence[int]) -> float:
    best, start = 0.0, 0
    for i in range(1, len(places) + 1):
        if i == len(places) or places[i] - places[i - 1] > _GAP + 1:
            best = max(best, (i - start) ** 2 / (places[i - 1] - places[start] + 1))
            start = i
    return best


def _rank(alike: Weights) -> Weights:
    """The stationary distribution of a walk: p = (1 − d)/N + d · Mᵀ p, exactly, as a linear system; no neighbour is all."""
    np.fill_diagonal(alike, 0)
    total = alike.sum(1, keepdims=True)
    count = len(alike)
    walk = np.where(total > 0, alike / np.where(total > 0, total, 1), 1 / count)
    return np.linalg.solve(np.eye(count) - _DAMPING * walk.T, np.full(count, (1 - _DAMPING) / count))
