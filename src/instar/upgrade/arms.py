"""The arms: every way to search while not everything is re-encoded, made ready to be measured.

An arm says by which vector a query meets rows that are still old, and what queries and rows are once they are new.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instar import catalogue
from instar.compat import labelled
from instar.compat import pairs as pairing
from instar.data.collection import Collection, Vectors
from instar.errors import DataError, InstarError, UnknownNameError
from instar.interfaces import CompatibleHead, Pairs
from instar.upgrade.result import Kind
from instar.upgrade.split import Split

KEEP, TWO_ENCODERS, NO_MAP = "keep", "two_encoders", "no_map"
OWN = "own"
"""The space of the new encoder's own vectors, which all arms but trained heads share."""


@dataclass(frozen=True)
class Arm:
    """An arm, ready to be measured."""

    id: str
    title: str
    kind: Kind
    idea: str
    old_queries: Tensor
    """[Q, O], compared with rows that are still old."""
    new_queries: Tensor
    """[Q, F], compared with rows that are new."""
    new_documents: Tensor
    """[N, F], what rows become."""
    space: str = OWN
    """Arms of one space share `new_queries` and `new_documents`."""
    fit_seconds: float = 0.0
    pairs: int = 0
    """Documents that had to be encoded anew before the first query: what a head was fitted on."""
    head: CompatibleHead | None = None


@dataclass(frozen=True)
class Failed:
    """An arm that could not run."""

    id: str
    title: str
    kind: Kind
    idea: str
    reason: str


def names(chosen: Sequence[str] | None = None, without: Sequence[str] = ()) -> list[str]:
    """Addresses of heads: every one of the catalogue, with the presets that are arms of their own, or the chosen ones.

    Raises UnknownNameError for what is no head.
    """
    heads = {slug: card for slug, card in catalogue.methods().items() if card.interface == "CompatibleHead"}
    known = [slug if preset is None else f"{slug}:{preset}" for slug, card in heads.items() for preset in (None, *card.presets)]
    built_in = [KEEP, TWO_ENCODERS]
    for name in (*(chosen or ()), *without):
        if name not in known and name not in built_in:
            raise UnknownNameError.among("arm", name, [*known, *built_in])
    found = [name for name in (chosen or _default(known)) if name not in without and name not in built_in]
    return found


def _default(known: Sequence[str]) -> list[str]:
    """Every head, and of presets those that answer a question users have: extra dimensions for BCT, the other regression, a
    rotation and nothing else."""
    also = {"bct:extra", "regression:cosine", "procrustes:rotation"}
    return [name for name in known if ":" not in name or name in also]


def simplicity(arm: Arm) -> tuple[int, str]:
    """Where arms are level the first is taken: nothing, a switch, two encoders, a formula, a trained map, vectors of its own."""
    kinds: list[Kind] = ["as it is", "switch", "two encoders", "map", "trained head"]
    place = 2 * kinds.index(arm.kind) + int(arm.head is not None and not arm.head.closed_form)
    return place, arm.id


def pairs(collection: Collection, split: Split, old: Vectors, new: Vectors) -> tuple[Pairs, str]:
    """What heads are fitted on: documents of the fitting part, and the choosing queries (their vectors, not what they find).

    And why labels were left out, if they were.
    """
    sides = [side.documents[split.fit] for side in (old, new)]
    if split.itself:
        labels = collection.labels and [collection.labels[i] for i in split.fit]
        return labelled.usable(pairing.of(sides[0], sides[1], labels))
    first, second = (np.concatenate([rows, asked(side)[split.choose]]) for rows, side in zip(sides, (old, new), strict=True))
    return pairing.of(first, second), ""


def asked(side: Vectors) -> np.ndarray:
    """The vectors of queries: the documents' own where documents are the queries."""
    return side.documents if side.queries is None else side.queries


def plain(old: Vectors, new: Vectors) -> list[Arm]:
    """The arms without a head: the search as it is, and both encoders for every query."""
    before, after, rows = (torch.from_numpy(v) for v in (asked(old), asked(new), new.documents))
    return [
        Arm(
            KEEP, "keep the old encoder", "as it is", "Nothing changes: the old encoder answers queries, rows stay as they are.",
            before, after, rows,
        ),
        Arm(
            TWO_ENCODERS, "both encoders for every query", "two encoders",
            "Old rows are asked with the old encoder and new rows with the new one; every query is encoded twice.",
            before, after, rows,
        ),
    ]  # fmt: skip


def fitted(
    address: str, taught: Pairs, old: Vectors, new: Vectors, *, documents: int, seed: int = 0, steps: int | None = None
) -> Arm | Failed:
    """The arm of a head, fitted; or why there is none. documents: how many of the pairs are rows that had to be encoded anew."""
    found = catalogue.parse(address)
    card = found.card
    build = catalogue.Build(card, catalogue.load(card), found.arguments)
    title = card.title if found.preset == "default" else f"{card.title} ({found.preset.replace('_', ' ')})"
    kind: Kind = "switch" if address == NO_MAP else "map"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = build(new.dim, old_dim=old.dim)
        if head.supervised and taught.labels is None:
            raise DataError("It learns from labels, and there are none.")
        started = time.perf_counter()
        head.fit(taught, steps=steps, seed=seed)
        seconds = time.perf_counter() - started
        queries, stored = torch.from_numpy(asked(new)), torch.from_numpy(new.documents)
        with torch.no_grad():
            mapped = unit(head.compatible(queries), address)
            if _own_vectors(head, stored[: min(64, len(stored))]):
                kind = "trained head"
                rows = unit(head.full(stored), address)
                ask = rows if new.queries is None else unit(head.full(queries), address)
                return Arm(address, title, kind, card.idea, mapped, ask, rows, address, seconds, documents, head)
    except InstarError as error:
        return Failed(address, title, kind, card.idea, str(error))
    return Arm(
        address,
        title,
        kind,
        card.idea,
        mapped,
        queries,
        stored,
        OWN,
        0.0 if address == NO_MAP else seconds,
        0 if address == NO_MAP else documents,
        head,
    )


def _own_vectors(head: CompatibleHead, sample: Tensor) -> bool:
    """Whether new rows store something else than the new encoder's vectors."""
    full = head.full(sample)
    return full.shape != sample.shape or not torch.allclose(unit(full, ""), unit(sample, ""), atol=1e-6)


def unit(vectors: Tensor, name: str) -> Tensor:
    """Unit rows. Raises DataError where a head gives what is not finite."""
    if not torch.isfinite(vectors).all():
        raise DataError(f"{name} gives vectors that are NaN or infinite.")
    return torch.nn.functional.normalize(vectors.float(), dim=1)
