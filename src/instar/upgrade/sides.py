"""The vectors of the same items under two encoders, wherever they come from: an encoder, a file, a store."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instar.data.collection import Collection
from instar.errors import DataError
from instar.interfaces import Encoder, Floats, Generation, Id, Index

FILES = (".npy", ".npz", ".parquet")
_PAGE = 10_000
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Side:
    """Items under one encoder."""

    name: str
    """How a person calls the encoder."""
    fingerprint: str
    ids: list[str] | None
    """[N]; None where a file has none: its rows are then in the order of the other side."""
    vectors: Floats
    """[N, dim]"""


def of_encoder(encoder: Encoder, ids: Sequence[str], texts: Sequence[str], progress: Progress | None = None) -> Side:
    """Encode the texts; what the report has encoded already is taken from its cache."""
    from instar.encoders.embedding import vectors_of

    found = vectors_of(Collection("texts", list(ids), list(texts)), encoder, progress)
    return Side(encoder.name, encoder.fingerprint, list(ids), found.documents)


def of_file(path: Path, encoder: Encoder | None = None) -> Side:
    """Read a file of vectors.

    encoder: what made them, for its name and fingerprint; without it the vectors themselves are the fingerprint, and what is
    fitted on them is refused by every encoder. Raises DataError, also for an encoder of another dimension.
    """
    from instar.encoders import files

    ids, vectors, _ = files.vectors(path)
    if encoder is None:
        return Side(path.name, hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest(), ids, vectors)
    if encoder.dim != vectors.shape[1]:
        raise DataError(f"{path} holds vectors of {vectors.shape[1]}; {encoder.name} makes vectors of {encoder.dim}.")
    return Side(encoder.name, encoder.fingerprint, ids, vectors)


def of_store(index: Index, ids: Sequence[str] | None = None, most: int | None = None, seed: int = 0) -> Side:
    """Read stored vectors, of the generation in which most of these rows stand; the others are left out.

    ids: None for all rows; of more than `most` so many are drawn, in their order. Raises DataError where no row is there.
    """
    known = stored_ids(index)
    names = [known[name] for name in (known if ids is None else ids) if name in known]
    if most is not None and most < len(names):  # the first ones may be of one topic, or of one year
        chosen = np.random.default_rng(seed).choice(len(names), most, replace=False)
        names = [names[place] for place in sorted(chosen.tolist())]
    found: list[tuple[Id, Floats, int]] = []
    for start in range(0, len(names), _PAGE):
        part = names[start : start + _PAGE]
        found += zip(part, *index.fetch(part), strict=True)
    if not found:
        raise DataError("None of these ids is in the store. Ids are compared as texts.")
    number = Counter(generation for *_, generation in found).most_common(1)[0][0]
    kept = [(str(name), vector) for name, vector, generation in found if generation == number]
    made = next(g for g in index.generations() if g.number == number)
    vectors = np.stack([vector for _, vector in kept])
    return Side(made.name or f"generation {number}", made.encoder, [name for name, _ in kept], vectors)


def stored_ids(index: Index) -> dict[str, Id]:
    """Every id of an index by its text. O(N). Raises DataError for ids that have one text."""
    found: dict[str, Id] = {}
    for generation in index.generations():
        after: Id | None = None
        while page := index.ids(generation.number, after=after, limit=_PAGE):
            for name in page:
                if found.setdefault(str(name), name) != name:
                    raise DataError(f"The store holds the ids {name!r} and {found[str(name)]!r}: compared as texts they are one.")
            after = page[-1]
    return found


def paired(old: Side, new: Side) -> tuple[list[str], Floats, Floats]:
    """The items that both sides have: ids, old vectors, new vectors. Raises DataError where there are none."""
    if old.ids is None or new.ids is None:
        if len(old.vectors) != len(new.vectors):
            raise DataError(
                f"{old.name} has {len(old.vectors)} vectors and {new.name} {len(new.vectors)}, and ids are missing. Give both "
                "files ids (.npz with `ids`, .parquet with `id`), or the same rows in the same order."
            )
        ids = old.ids or new.ids or [str(i) for i in range(len(old.vectors))]
        return ids, old.vectors, new.vectors
    places = {name: i for i, name in enumerate(old.ids)}
    both = [(places[name], i) for i, name in enumerate(new.ids) if name in places]
    if not both:
        raise DataError(f"{old.name} and {new.name} have no id in common: {old.ids[0]!r} …, {new.ids[0]!r} ….")
    left, right = zip(*both, strict=True)
    return [new.ids[i] for i in right], old.vectors[list(left)], new.vectors[list(right)]


def drawn(ids: Sequence[str], old: Floats, new: Floats, items: int, seed: int) -> tuple[list[str], Floats, Floats]:
    """At most so many of the items, at random, in their order."""
    if len(ids) <= items:
        return list(ids), old, new
    places = np.sort(np.random.default_rng(seed).permutation(len(ids))[:items])
    return [ids[i] for i in places], old[places], new[places]


def generations(old: Side, new: Side, full_dim: int, fingerprint: str, before: Sequence[Generation] = ()) -> list[Generation]:
    """What a head between both sides is saved with.

    fingerprint: of what rows of the new generation store. before: the generations of a previous head, whose newest is `old`.
    """
    known = list(before) or [Generation(0, old.fingerprint, int(old.vectors.shape[1]), old.name)]
    return [*known, Generation(known[-1].number + 1, fingerprint, full_dim, new.name)]


def is_file(source: str) -> bool:
    """Whether a source is a file of vectors."""
    return Path(source).suffix.lower() in FILES


def knobs(given: Mapping[str, str]) -> dict[str, Any]:
    """Values of a constructor as written on the command line: truth values, numbers, otherwise texts."""
    return {name: _value(text) for name, text in given.items()}


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
