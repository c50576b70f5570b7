"""Fit a head on items under both encoders, and say on a held-out tenth what it is worth."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from instar import catalogue
from instar.compat import labelled
from instar.compat import pairs as pairing
from instar.compat.mapping import Map
from instar.errors import DataError, ShapeError, UnknownNameError
from instar.interfaces import CompatibleHead, Monitor, Pairs
from instar.retrieval.fusion import Calibration
from instar.retrieval.uncertainty import Uncertainty

LEAST = 20
"""Items below which no tenth can be held out."""
_MOST_HELD = 2000
_NEAREST = 10
_SPREAD = 64
"""Held-out items below which nothing is said of which rows are uncertain."""
_SCORED = 16
"""Held-out items below which their scores with each other are no distribution."""


@dataclass(frozen=True)
class Quality:
    """What a head is worth on items that it was not fitted on, among the stored vectors of all items."""

    fitted: int
    held_out: int
    cosine: float
    """Mean of cos(compatible(new), old)."""
    itself: float
    """Share of the items whose own stored vector is the nearest to their mapped one."""
    neighbours: float
    """Share of the 10 nearest stored vectors of the item's stored one that its mapped one finds too."""
    uncertainty: float | None
    """Rank correlation of estimated and real residuals, fitted on one half of the held-out items, measured on the other."""


@dataclass(frozen=True)
class Fitted:
    """A head, what it is worth, and which stored vectors it explains badly."""

    head: CompatibleHead
    quality: Quality
    uncertainty: Uncertainty | None
    """None for too few held-out items."""
    calibration: Calibration | None
    """Of the scores of old and new rows, for fusion; None for too few held-out items."""
    labels_left_out: str = ""
    """Why it was fitted without the labels that there were, which it would have used."""


def fit(
    address: str,
    pairs: Pairs,
    *,
    old: str,
    previous: CompatibleHead | None = None,
    steps: int | None = None,
    seed: int = 0,
    monitor: Monitor | None = None,
    knobs: Mapping[str, Any] | None = None,
) -> Fitted:
    """Fit the head of a method on nine tenths of the pairs and measure it on the others.

    Args:
        address: such as `ridge` or `bt2:cayley`. old: fingerprint of the encoder of the old vectors.
        previous: the head of the update before this one. knobs: go before those of the address's preset.

    The head that is returned is the one that was measured. Labels that are no classes (`labelled.unfit`) are left out. Raises
    UnknownNameError, DataError for fewer than 20 pairs or a method that needs labels where there are none, and what the head's
    `fit` raises.
    """
    items = len(pairs.new)
    if items < LEAST:
        raise DataError(f"A head is fitted on {LEAST} items or more, of which a tenth is held out; received {items}.")
    pairing.distinct(pairs.old, "old")
    pairing.distinct(pairs.new, "new")
    head = build(address, pairs, previous=previous, seed=seed, knobs=knobs)
    order = np.random.default_rng(seed).permutation(items)
    held = order[: min(max(items // 10, 2), _MOST_HELD)]
    taught = np.setdiff1d(order, held)
    teaching, left_out = labelled.usable(_of(pairs, taught))
    if head.supervised and teaching.labels is None:
        why = left_out or "the data has none"
        raise DataError(f"{address} learns from labels: {why}. Give a column 'label' of classes, or another --method.")
    head.fit(teaching, steps=steps, seed=seed, monitor=monitor)
    head.eval()
    own = torch.from_numpy(held)
    with torch.no_grad():
        mapped, full = (F.normalize(part(pairs.x[own]).float(), dim=1) for part in (head.compatible, head.full))
    stored, everything = F.normalize(pairs.old[own], dim=1), F.normalize(pairs.old, dim=1)
    residuals = 1 - (mapped * stored).sum(1).numpy()
    uncertainty, spread = _uncertainty(old, stored.numpy(), residuals)
    itself, neighbours = _found(mapped, stored, everything, own)
    quality = Quality(len(taught), len(held), float(1 - residuals.mean()), itself, neighbours, spread)
    number = head.newest
    calibration = _calibration({number - 1: (mapped, stored), number: (full, full)})
    return Fitted(head, quality, uncertainty, calibration, "" if isinstance(head, Map) else left_out)


def build(
    address: str, pairs: Pairs, *, previous: CompatibleHead | None = None, seed: int = 0, knobs: Mapping[str, Any] | None = None
) -> CompatibleHead:
    """A head of the widths of the pairs, before it is fitted. Raises UnknownNameError, and ShapeError for bad knobs."""
    found = catalogue.parse(address)
    if found.card.interface != "CompatibleHead":
        heads = sorted(slug for slug, card in catalogue.methods().items() if card.interface == "CompatibleHead")
        raise DataError(f"{address} is no head that makes vectors compatible. Choose one of {', '.join(heads)}.")
    method = catalogue.load(found.card)
    known = [name for name in inspect.signature(method).parameters if name not in ("new_dim", "old_dim", "input_dim")]
    if unknown := [name for name in knobs or {} if name not in known]:
        raise UnknownNameError.among(f"knob of {address}", unknown[0], known)
    make = catalogue.Build(found.card, method, {**found.arguments, **(knobs or {})})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs = {} if pairs.inputs is None else {"input_dim": pairs.inputs.shape[1]}
        try:
            head: CompatibleHead = make(pairs.new.shape[1], old_dim=pairs.old.shape[1], **inputs)
        except TypeError as error:  # a text where a number is expected
            raise ShapeError(f"{address} cannot be made with the knobs {dict(knobs or {})}: {error}.") from error
    head.previous = previous
    return head


def _of(pairs: Pairs, places: np.ndarray) -> Pairs:
    at = torch.from_numpy(places)
    return Pairs(*(None if part is None else part[at] for part in (pairs.old, pairs.new, pairs.labels, pairs.inputs)))  # type: ignore[arg-type]


def _uncertainty(old: str, stored: np.ndarray, residuals: np.ndarray) -> tuple[Uncertainty | None, float | None]:
    if len(residuals) < _SPREAD:
        return None, None
    half = len(residuals) // 2
    guess = Uncertainty.fit(old, stored[:half], residuals[:half])(stored[half:])
    spread = stats.spearmanr(guess, residuals[half:]).statistic if np.ptp(guess) > 0 else 0.0
    return Uncertainty.fit(old, stored, residuals), float(np.nan_to_num(spread))


def _calibration(sides: Mapping[int, tuple[Tensor, Tensor]]) -> Calibration | None:
    """From the scores of each held-out item with every other one: (queries, rows) of a generation."""
    if any(len(queries) < _SCORED for queries, _ in sides.values()):
        return None
    others = ~torch.eye(len(next(iter(sides.values()))[0]), dtype=torch.bool)
    return Calibration.fit({number: (queries @ rows.T)[others].numpy() for number, (queries, rows) in sides.items()})


def _found(mapped: Tensor, stored: Tensor, everything: Tensor, own: Tensor) -> tuple[float, float]:
    """How often the mapped vectors find their own stored ones, and their neighbours."""
    k = min(_NEAREST, len(everything) - 1)
    itself = neighbours = 0.0
    for start in range(0, len(mapped), 256):
        part = slice(start, start + 256)
        scores, real = mapped[part] @ everything.T, stored[part] @ everything.T
        best = scores.max(1).values
        itself += float((scores[torch.arange(len(scores)), own[part]] >= best).sum())
        # The item itself is a neighbour of neither, so that it does not count twice.
        scores[torch.arange(len(scores)), own[part]] = real[torch.arange(len(real)), own[part]] = -torch.inf
        left, right = scores.topk(k, 1).indices, real.topk(k, 1).indices
        neighbours += float((left[:, :, None] == right[:, None]).any(2).float().mean(1).sum())
    return itself / len(mapped), neighbours / len(mapped)
