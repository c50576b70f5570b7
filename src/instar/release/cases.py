"""What a new version is asked where nobody says: real items from the documentation inside Python."""

from __future__ import annotations

import random
from pathlib import Path

from instar.data import pretrained, topics
from instar.data.collection import Collection
from instar.errors import DataError
from instar.gate.predictions import Cases

_PROMPT, _NEXT, _CHOICES = 48, 10, 4
"""Words of a prompt and of its continuation, and continuations to choose from."""


def of(model: Path, items: int = 300, seed: int = 0) -> Cases:
    """Items for a stored model: an encoder is searched with, a causal model chooses how a text goes on.

    Raises DataError for a classifier, whose classes only its owner knows.
    """
    kind = pretrained.kind_of(model)
    if kind == "classifier":
        raise DataError(f"{model} is a classifier: which items it should get right is for you to say. Give --data FILE.")
    collection = topics.topics()
    return search(collection, items, seed) if kind == "encoder" else continuations(collection, items, seed)


def search(collection: Collection, items: int, seed: int, *, documents: int = 600) -> Cases:
    """Queries with their answers among so many documents. Raises DataError for a collection without texts or queries."""
    if collection.texts is None or collection.queries is None or collection.relevant is None:
        raise DataError(f"{collection.name} has no queries with texts and answers.")
    draw = random.Random(f"{seed}/search")
    known = sorted(draw.sample(range(len(collection)), min(documents, len(collection))))
    inside = set(known)
    asked = [q for q, places in enumerate(collection.relevant) if inside.issuperset(places.tolist())]
    chosen = sorted(draw.sample(asked, min(items, len(asked))))
    return Cases(
        name=f"{collection.name}, search",
        ids=[collection.query_ids[q] for q in chosen],
        inputs=[collection.queries[q] for q in chosen],
        labels=[[collection.ids[p] for p in collection.relevant[q].tolist()] for q in chosen],
        documents=[(collection.ids[d], collection.texts[d]) for d in known],
    )


def continuations(collection: Collection, items: int, seed: int) -> Cases:
    """Beginnings of texts, each with how it goes on and how three others do. Raises DataError for too few long texts."""
    long = [
        (name, words)
        for name, text in zip(collection.ids, collection.texts or (), strict=True)
        if len(words := text.split()) > _PROMPT + _NEXT
    ]
    if len(long) < max(_CHOICES, 20):
        raise DataError(f"{collection.name} holds {len(long)} texts of more than {_PROMPT + _NEXT} words; 20 are needed.")
    draw = random.Random(f"{seed}/continuations")
    chosen = draw.sample(long, min(items, len(long)))
    ends = [" ".join(words[_PROMPT : _PROMPT + _NEXT]) for _, words in chosen]
    choices = []
    for place in range(len(chosen)):
        others = draw.sample([end for i, end in enumerate(ends) if i != place and end != ends[place]], _CHOICES - 1)
        choices.append(draw.sample([ends[place], *others], _CHOICES))
    return Cases(
        name=f"{collection.name}, continuations",
        ids=[name for name, _ in chosen],
        inputs=[" ".join(words[:_PROMPT]) for _, words in chosen],
        labels=list(ends),
        choices=choices,
    )
