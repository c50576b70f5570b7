"""Stamps of a Qdrant collection, in its metadata, and what a collection has to be to get one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from instar.errors import DataError, StoreError
from instar.interfaces import Generation, Id
from instar.retrieval import checking
from instar.retrieval.qdrant_collection import Client
from instar.retrieval.stamped import Stamp

_KEY = "instar"
_PAGE = 1000


def metadata(stamps: Sequence[Stamp], left: Sequence[str]) -> dict[str, str]:
    """left: vectors of the collection that belong to no generation any more. One text, since metadata are merged key by key."""
    held = [{**asdict(s.generation), "vector": s.column} for s in stamps]
    return {_KEY: json.dumps({"generations": held, "left": list(left)})}


def stamped(client: Client) -> tuple[list[Stamp], list[str]]:
    """Stamps of a collection, the oldest first, and vectors that are left over; none without a stamp. Raises StoreError."""
    text = client.description().get(_KEY)
    if text is None:
        return [], []
    try:
        table = json.loads(text)
        stamps = [Stamp(Generation(s["number"], s["encoder"], s["dim"], s["name"]), s["vector"]) for s in table["generations"]]
        return sorted(stamps, key=lambda s: s.generation.number), list(table["left"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"The metadata '{_KEY}' of {client.where} are no stamp ({error!r}); another program has written them. Restore them, "
            "or remove that key and adopt the collection again."
        ) from error


def fits(client: Client, column: str, generation: Generation) -> None:
    """Raises StoreError, DataError for vectors that cannot be of the generation."""
    size, distance = client.vectors()[column]
    if size != generation.dim:
        raise DataError(f"{client.where}, vector '{column}', holds {size} dimensions; received a generation of {generation.dim}.")
    if distance not in ("Cosine", "Dot", "Euclid"):
        raise StoreError(
            f"{client.where} compares by {distance}, which does not rank as cosine does; expected Cosine, Dot or Euclid."
        )
    start: Id | None = None
    while True:
        page = client.scroll(([column], []), _PAGE + 1, start, [column])
        rows = np.array([point.vectors[column] for point in page[:_PAGE]], dtype=np.float64).reshape(-1, size)
        lengths = np.linalg.norm(rows, axis=1)
        if not np.isfinite(lengths).all() or (lengths == 0).any():
            raise DataError(f"{client.where}, vector '{column}', holds vectors that are zero or not finite; delete those first.")
        if distance != "Cosine" and (np.abs(lengths - 1) > checking.LENGTH).any():
            raise DataError(
                f"{client.where}, vector '{column}', holds vectors that are not of length 1, and compares by {distance}, which "
                "ranks as cosine for unit vectors only. Normalise them."
            )
        if len(page) <= _PAGE:
            return
        start = page[_PAGE].id
