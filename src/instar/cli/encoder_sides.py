"""From what `instar encoder report` is given to what it measures: a collection, and its vectors under both encoders."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from instar.cli import encoder_given as given
from instar.data.collection import Collection, Vectors
from instar.errors import DataError, GenerationError, PlanError
from instar.interfaces import Encoder, Floats
from instar.upgrade import sides
from instar.upgrade.sides import Side


@dataclass(frozen=True)
class Named:
    """One encoder as the user names it."""

    option: str
    """`old` or `new`: the option of its settings."""
    source: str
    settings: Mapping[str, Any]
    """Of the encoder; of a file or store `encoder=SOURCE` says what made its vectors, the rest is of that encoder."""
    queries: Path | None
    """Vectors of the queries."""

    @property
    def stored(self) -> bool:
        """Whether the vectors are there already."""
        return given.is_store(self.source) or sides.is_file(self.source)

    def encoder(self, texts: Sequence[str] | None) -> Encoder | None:
        """The encoder; None of vectors of which nobody said what made them. Raises PlanError, and what opening raises."""
        from instar.encoders.opening import open_encoder

        settings = dict(self.settings)
        source = settings.pop("encoder", None) if self.stored else self.source
        if source is None and settings:
            raise PlanError(
                f"{self.source} holds vectors: say what made them with --{self.option} encoder=SOURCE, then its settings."
            )
        return None if source is None else open_encoder(source, settings, texts=texts)


@dataclass(frozen=True)
class Gathered:
    """What is measured."""

    collection: Collection
    old: Vectors
    new: Vectors
    rows: int
    """Documents before a sample was drawn."""
    seconds: float
    """Spent in encoders."""


def gather(
    old: Named,
    new: Named,
    *,
    data: str | None,
    queries: Path | None,
    qrels: Path | None,
    sample: int,
    seed: int,
    cache: bool,
    telling: given.Telling,
) -> Gathered:
    """Read, draw and encode.

    Raises PlanError for what does not go together, and whatever opening, reading or encoding raises.
    """
    _fit_together(old, new, data)
    ready: dict[str, Side] = {}
    if data is None and old.stored and new.stored:
        collection, ready = _vectors_alone(old, new, queries, qrels)
        rows = len(collection)
        collection = collection.of(_drawn(rows, sample, seed))
    else:
        collection, rows = _documents(data, queries, qrels, sample, seed)
        ready = {one.option: _stored(one, collection.ids) for one in (old, new) if one.stored}
        collection = _present(collection, ready)
    started = time.perf_counter()
    found = [_vectors(one, ready.get(one.option), collection, cache, telling) for one in (old, new)]
    return Gathered(collection, found[0], found[1], rows, time.perf_counter() - started)


def _fit_together(old: Named, new: Named, data: str | None) -> None:
    if given.is_store(new.source):
        raise PlanError(f"NEW is an encoder or a file of its vectors; {new.source} is a store, which can be OLD.")
    if data is None and old.stored != new.stored:
        run = new.source if old.stored else old.source
        raise PlanError(f"{run} is run, so it needs the texts behind the vectors: --data FILE with `id` and `text`.")
    for one in (old, new):
        if one.queries is not None and not one.stored:
            raise PlanError(
                f"{one.source} encodes the queries itself; --{one.option}-queries are for vectors from a file or store."
            )


def _documents(data: str | None, queries: Path | None, qrels: Path | None, sample: int, seed: int) -> tuple[Collection, int]:
    """The documents to measure on, and how many there are in all."""
    from instar.data.collecting import open_collection

    whole = open_collection(data, queries=queries, qrels=qrels)
    return open_collection(data, queries=queries, qrels=qrels, sample=sample, seed=seed), len(whole)


def _vectors_alone(old: Named, new: Named, queries: Path | None, qrels: Path | None) -> tuple[Collection, dict[str, Side]]:
    """A collection of which only ids and vectors are known."""
    if queries is not None or qrels is not None:
        raise PlanError("--queries and --qrels speak of documents: give --data FILE with their `id` and `text`.")
    second = sides.of_file(Path(new.source))
    first = _stored(old, second.ids)
    ids, stored, encoded = sides.paired(first, second)
    ready = {"old": replace(first, ids=ids, vectors=stored), "new": replace(second, ids=ids, vectors=encoded)}
    return Collection(f"{first.name}, {second.name}", ids), ready


def _drawn(rows: int, sample: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(rows)[:sample])


def _stored(one: Named, ids: Sequence[str] | None) -> Side:
    """Vectors from a file, or those of a store that have these ids."""
    if not given.is_store(one.source):
        return sides.of_file(Path(one.source))
    with given.store(one.source, readonly=True) as index:
        return sides.of_store(index, ids)


def _present(collection: Collection, ready: Mapping[str, Side]) -> Collection:
    """The documents that have a vector on every side; the facts say how many have none. Raises DataError where few are left."""
    known = [set(side.ids) for side in ready.values() if side.ids is not None]
    for name, side in ready.items():
        if side.ids is None and len(side.vectors) != len(collection):
            raise DataError(
                f"{side.name} holds {len(side.vectors)} vectors without ids, and {len(collection)} documents are measured. Give "
                f"the {name} vectors ids (.npz with `ids`, .parquet with `id`)."
            )
    kept = [i for i, name in enumerate(collection.ids) if all(name in ids for ids in known)]
    if not kept:
        raise DataError(f"None of the {len(collection)} documents has a vector: their ids are {collection.ids[0]!r} …")
    lacking = len(collection) - len(kept)
    if not lacking:
        return collection
    if any(side.ids is None for side in ready.values()):
        raise DataError(f"{lacking} documents have no vector, and the other side has no ids to tell which are theirs.")
    left = collection.of(kept)
    return replace(left, facts={**left.facts, "documents without a vector": lacking})


def _vectors(one: Named, side: Side | None, collection: Collection, cache: bool, telling: given.Telling) -> Vectors:
    """The collection under one encoder."""
    encoder = None if side is not None and collection.relevant is None else one.encoder(collection.texts)
    if side is None:
        from instar.encoders.embedding import vectors_of

        assert encoder is not None
        return vectors_of(collection, encoder, telling.begin(encoder.name), cache=cache)
    places = {name: i for i, name in enumerate(side.ids or collection.ids)}
    documents = side.vectors[[places[name] for name in collection.ids]]
    queries = None if collection.relevant is None else _queries(one, side, encoder, collection, telling)
    return Vectors(side.name, side.fingerprint, documents, queries, facts={"source": one.source})


def _queries(one: Named, side: Side, encoder: Encoder | None, collection: Collection, telling: given.Telling) -> Floats:
    """Vectors of the queries beside stored ones: from a file, or by the encoder that made those."""
    if one.queries is not None:
        found = sides.of_file(one.queries)
        if found.ids is None:
            if len(found.vectors) != len(collection.query_ids):
                raise DataError(
                    f"{one.queries} holds {len(found.vectors)} vectors without ids for {len(collection.query_ids)} queries; give "
                    "it ids (.npz with `ids`, .parquet with `id`)."
                )
            return found.vectors
        places = {name: i for i, name in enumerate(found.ids)}
        if lacking := [name for name in collection.query_ids if name not in places]:
            raise DataError(f"{one.queries} lacks {len(lacking)} of {len(collection.query_ids)} queries, such as {lacking[0]!r}.")
        return found.vectors[[places[name] for name in collection.query_ids]]
    if encoder is None or collection.queries is None:
        raise PlanError(
            f"{one.source} holds vectors of documents; to ask them, give the queries' vectors (--{one.option}-queries FILE) or "
            f"say what encodes them (--{one.option} encoder=SOURCE)."
        )
    if given.is_store(one.source) and encoder.fingerprint != side.fingerprint:
        raise GenerationError(
            f"{one.source} is stamped with another encoder than {encoder.name}; its queries have to be of that one."
        )
    return encoder.encode(collection.queries, "query", telling.begin(encoder.name))
