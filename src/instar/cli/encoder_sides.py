"""From what `instar encoder report` is given to what it measures: a collection, and its vectors under both encoders."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instar.cli import encoder_given as given
from instar.data.collection import Collection, Vectors
from instar.encoders import length
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

    def encoder(self, texts: Sequence[str] | None) -> Encoder:
        """Open it; `texts` are for what is fitted on the documents."""
        from instar.encoders.opening import open_encoder

        settings = dict(self.settings)
        source = settings.pop("encoder") if self.stored else self.source
        return open_encoder(source, settings, texts=texts)


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
    """Read, draw and encode. Raises PlanError for what does not go together, and what opening, reading or encoding raises."""
    from instar.data.collecting import open_collection, sampled

    _fit_together(old, new, data, queries or qrels)
    read = {one.option: sides.of_file(Path(one.source)) for one in (old, new) if sides.is_file(one.source)}
    alone = data is None and old.stored and new.stored
    whole = _vectors_alone(old, new, read) if alone else open_collection(data, queries=queries, qrels=qrels)
    ready = {option: _named(side, whole.ids, "documents") for option, side in read.items()}
    asked = {
        one.option: _named(sides.of_file(one.queries), whole.query_ids, "queries")
        for one in (old, new)
        if one.queries is not None
    }
    collection = sampled(_present(whole, ready), sample, seed)
    if given.is_store(old.source):
        with given.store(old.source, readonly=True) as index:
            ready["old"] = sides.of_store(index, collection.ids)
        collection = _present(collection, ready)
    started = time.perf_counter()
    found = [_vectors(one, ready.get(one.option), asked.get(one.option), collection, cache, telling) for one in (old, new)]
    return Gathered(collection, found[0], found[1], len(whole), time.perf_counter() - started)


def _fit_together(old: Named, new: Named, data: str | None, relevance: Path | None) -> None:
    if given.is_store(new.source):
        raise PlanError(f"NEW is an encoder or a file of its vectors; {new.source} is a store, which can be OLD.")
    if data is None and old.stored != new.stored:
        run = new.source if old.stored else old.source
        raise PlanError(
            f"{run} is no file of vectors that exists ({', '.join(sides.FILES)}), so it is taken for an encoder. That is "
            "run, and needs the texts behind the vectors: --data FILE with `id` and `text`."
        )
    if data is None and relevance is not None and old.stored:
        raise PlanError(f"{relevance} speaks of documents: give --data FILE with their `id` (and `text`, where it is known).")
    for one in (old, new):
        if one.queries is not None and not one.stored:
            raise PlanError(f"{one.source} encodes queries itself; --{one.option}-queries is for vectors from a file or store.")
        if one.stored and one.settings and "encoder" not in one.settings:
            raise PlanError(f"{one.source} holds vectors: say what made them, --{one.option} encoder=SOURCE, then its settings.")


def _vectors_alone(old: Named, new: Named, read: Mapping[str, Side]) -> Collection:
    """A collection of which only vectors are known, and ids where a file has them. Raises DataError."""
    second = read["new"]
    first = read.get("old", second)
    if first.ids is None and second.ids is None:
        if given.is_store(old.source):
            raise DataError(f"{new.source} has no ids to find its rows in {old.source}. Save it as .npz with `ids`.")
        if len(first.vectors) != len(second.vectors):
            raise DataError(
                f"{old.source} has {len(first.vectors)} vectors and {new.source} {len(second.vectors)}, and both lack ids. "
                "Save them as .npz with `ids`, or with the same rows in the same order."
            )
    ids = second.ids or first.ids or [str(i) for i in range(len(second.vectors))]
    return Collection(f"{Path(old.source).name}, {Path(new.source).name}", ids)


def _named(side: Side, ids: Sequence[str], what: str) -> Side:
    """Vectors with ids; rows without any are in the order of these. Raises DataError where they are not as many."""
    if side.ids is None and len(side.vectors) != len(ids):
        raise DataError(
            f"{side.name} has {len(side.vectors)} vectors without ids for {len(ids)} {what}. Save them as .npz with `ids`, or "
            "with the same rows in the same order."
        )
    return side if side.ids is not None else replace(side, ids=list(ids))


def _present(collection: Collection, ready: Mapping[str, Side]) -> Collection:
    """The documents that have a vector on every side; the facts say how many have none. Raises DataError where no one has."""
    known = [set(side.ids or ()) for side in ready.values()]
    kept = [i for i, name in enumerate(collection.ids) if all(name in ids for ids in known)]
    if not kept:
        known_as = " and ".join(f"{side.name} (ids such as {(side.ids or ['none'])[0]!r})" for side in ready.values())
        raise DataError(
            f"None of the {len(collection)} documents, such as {collection.ids[0]!r}, has a vector in {known_as}. Rows belong "
            "together by their ids, which are compared as texts."
        )
    if len(kept) == len(collection):
        return collection
    left = collection.of(kept)
    return replace(left, facts={**left.facts, "documents without a vector": len(collection) - len(kept)})


def _vectors(
    one: Named, side: Side | None, asked: Side | None, collection: Collection, cache: bool, telling: given.Telling
) -> Vectors:
    """The collection under one encoder."""
    if side is None:
        from instar.encoders.embedding import vectors_of

        encoder = one.encoder(collection.texts)
        return vectors_of(collection, encoder, telling.begin(given.printable(encoder.name)), cache=cache)
    maker = one.encoder(collection.texts) if one.settings else None
    made = side if maker is None else _made_by(one, side, maker)
    documents = _rows(side, collection.ids, "documents")
    if collection.relevant is None:
        queries = None
    elif asked is not None:
        queries = _rows(asked, collection.query_ids, "queries")
    else:
        queries = _encoded(one, maker, collection, telling)
    facts: dict[str, Any] = {"source": Path(one.source).name}
    if maker is not None and collection.texts is not None:
        facts |= length.facts(maker, collection.texts)
    return Vectors(made.name, made.fingerprint, documents, queries, facts=facts)


def _rows(side: Side, ids: Sequence[str], what: str) -> Floats:
    """The vectors of these ids, in their order. Raises DataError."""
    places = {name: i for i, name in enumerate(side.ids or ())}
    if lacking := [name for name in ids if name not in places]:
        raise DataError(f"{side.name} lacks {len(lacking)} of {len(ids)} {what}, such as {lacking[0]!r}.")
    return side.vectors[[places[name] for name in ids]]


def _made_by(one: Named, side: Side, encoder: Encoder) -> Side:
    """Vectors with the name and fingerprint of their encoder. Raises DataError, GenerationError for another one."""
    width = side.vectors.shape[1]
    if encoder.dim != width:
        raise DataError(f"{one.source} holds vectors of {width}; {encoder.name} makes vectors of {encoder.dim}.")
    if given.is_store(one.source) and encoder.fingerprint != side.fingerprint:
        raise GenerationError(
            f"{one.source} says that {side.name} made its vectors; {encoder.name} has another fingerprint. Name the encoder with "
            f"the settings that it had then, or give vectors of the queries (--{one.option}-queries FILE)."
        )
    return replace(side, name=encoder.name, fingerprint=encoder.fingerprint)


def _encoded(one: Named, maker: Encoder | None, collection: Collection, telling: given.Telling) -> Floats:
    """Queries beside stored vectors, by the encoder that made those. Raises PlanError."""
    if maker is None or collection.queries is None:
        raise PlanError(
            f"{one.source} holds vectors of documents alone. Give vectors of the queries (--{one.option}-queries FILE), or say "
            f"what encodes them (--{one.option} encoder=SOURCE) and give their texts."
        )
    return maker.encode(collection.queries, "query", telling.begin(given.printable(maker.name)))
