"""The report on a change of encoder: every arm measured on a sample, predicted with intervals, checked on held-out queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instar.bench import environment
from instar.bench.run import now
from instar.bench.statistics import Estimate
from instar.compat import labelled
from instar.compat import pairs as pairing
from instar.data.collection import Collection, Vectors
from instar.encoders import length
from instar.errors import DataError, ShapeError
from instar.gate.intervals import mean_intervals
from instar.gate.words import percent
from instar.upgrade import advice, arms, examples
from instar.upgrade import measure as measuring
from instar.upgrade.arms import Arm, Failed
from instar.upgrade.likeness import kind_of_upgrade, likeness
from instar.upgrade.measure import Bench, Measured
from instar.upgrade.ranks import Asked, Gallery
from instar.upgrade.result import Arm as Shown
from instar.upgrade.result import Check, Figure, Point, Report, Side
from instar.upgrade.split import split

FLOAT = 4
"""Bytes of a stored number."""
_BUCKETS = 10
_CELLS = 24_000_000
"""Scores of queries with documents that each arm is measured on, in each half."""

Progress = Callable[[str, int, int], None]
"""Told (what is done, done, total)."""


@dataclass(frozen=True)
class Costs:
    """What encoding takes, where it is known."""

    rows: int
    document_seconds: float | None
    old_query_seconds: float | None
    new_query_seconds: float | None

    def hours(self, fraction: float, arm: Arm, sample: int) -> float | None:
        """Encoding that share of the rows, and before the first query what the head was fitted on."""
        if self.document_seconds is None:
            return None
        pairs = min(arm.pairs, sample) / max(1, self.rows)
        return (max(fraction, pairs) * self.rows * self.document_seconds + arm.fit_seconds) / 3600

    def query_seconds(self, arm: Arm) -> float | None:
        """Encoding a query; both encoders where both are asked."""
        old, new = self.old_query_seconds, self.new_query_seconds
        if arm.kind == "as it is":
            return old
        if arm.kind == "two encoders":
            return None if old is None or new is None else old + new
        return new


def report(
    collection: Collection,
    old: Vectors,
    new: Vectors,
    *,
    k: int = 10,
    chosen: Sequence[str] | None = None,
    without: Sequence[str] = (),
    rows: int | None = None,
    hours: float | None = None,
    rate: float | None = None,
    pairs: int | None = None,
    steps: int | None = None,
    queries: int | None = None,
    seed: int = 0,
    level: float = 0.95,
    progress: Progress | None = None,
    facts: Mapping[str, Any] | None = None,
    command: str = "",
    seconds_encoding: float = 0.0,
) -> Report:
    """Measure every arm.

    Args:
        collection: the documents and what should be found among them; old, new: its vectors under both encoders.
        k: recall at k. chosen, without: arms by their ids; all by default.
        rows: of the index that is to change, where the collection is a sample of it.
        hours: what may be spent on encoding; the advice keeps to it. rate: documents a second, where nothing was encoded here.
        pairs: documents that heads are fitted on. steps: of training. queries: of the prediction and of the check, each;
            by default as many as there are, up to what is measured in a minute or two.

    Raises DataError for vectors that do not fit the collection or are not finite, for too few queries; ShapeError;
    UnknownNameError for an arm that does not exist.
    """
    began, started = now(), time.perf_counter()
    if not (k >= 1 and (rows is None or rows >= 1) and (hours is None or 0 <= hours < inf) and (rate is None or 0 < rate < inf)):
        raise ShapeError(f"Expected k ≥ 1, rows ≥ 1, hours ≥ 0, rate > 0, all finite; received {k}, {rows}, {hours}, {rate}.")
    wanted = arms.names(chosen, without)
    nothing = "" if collection.relevant is not None else labelled.measurable(collection.labels)
    if nothing:
        collection = replace(collection, labels=None)
    old, new = (_checked(side, collection) for side in (old, new))
    parts = split(
        collection, measuring.answered(collection, old, new, k), seed=seed, pairs=pairs, most=queries or _enough(len(collection))
    )
    order = np.random.default_rng([seed, 1]).permutation(parts.gallery)
    bench = Bench(collection, old, new, parts, Gallery.of(order, _BUCKETS), k)
    if len(parts.gallery) <= k:
        raise DataError(f"{collection.name}: {len(parts.gallery)} documents are searched; recall at {k} needs more than {k}.")

    tell = _Telling(progress)
    taught, unlabelled = arms.pairs(collection, parts, old, new)
    made: list[Arm | Failed] = list(arms.plain(old, new))
    for address in wanted:
        tell("fitting " + address, len(made) - 2, len(wanted))
        made.append(arms.fitted(address, taught, old, new, documents=len(parts.fit), seed=seed, steps=steps))
    able = sorted((arm for arm in made if isinstance(arm, Arm)), key=arms.simplicity)
    tell("choosing how to merge", 0, 1)
    fusions = measuring.fusions(bench, able)
    predicted, held_out = bench.asked(parts.predict), bench.asked(parts.held_out)
    marks: list[list[Measured]] = []
    for name, asked in (("predicting", predicted), ("checking on held-out queries", held_out)):
        done = [0]

        def told(count: int, name: str = name, done: list[int] = done) -> None:
            done[0] += count
            tell(name, done[0], len(able))

        tell(name, 0, len(able))
        marks.append(measuring.measure(bench, able, fusions, asked, told))

    costs = Costs(
        rows or len(collection),
        1 / rate if rate is not None else new.document_seconds,
        old.query_seconds,
        new.query_seconds,
    )
    shown = _arms(bench, able, fusions, marks, predicted, costs, level)
    shown += [Shown(f.id, f.title, f.kind, f.idea, not_run=f.reason) for f in made if isinstance(f, Failed)]
    ran = [arm for arm in shown if arm.curve]
    advised = advice.advise(
        ran,
        {arm.id: one.recall for arm, one in zip(able, marks[0], strict=True)},
        _blocks(bench, predicted),
        truth=collection.truth,
        k=k,
        level=level,
        hours=hours,
    )
    check = _check(able, marks, bench.gallery.stages)
    alike = likeness(old.documents[parts.fit], new.documents[parts.fit], seed)
    everything = next(a for a in shown if a.id == arms.TWO_ENCODERS).curve
    tell("done", 1, 1)
    return Report(
        headline=advised.headline,
        advice=advised.sentences,
        cautions=advice.cautions(
            truth=collection.truth,
            chance=check.chance,
            margin=check.margin,
            within=check.worst <= max(check.margin, 1.5 * check.chance),
            rows=costs.rows,
            documents=len(collection),
            searched=len(parts.gallery),
            k=k,
            same=old.dim == new.dim and np.allclose(old.documents, new.documents, rtol=0, atol=1e-5),
            lacking=int(collection.facts.get("documents without a vector", 0)),
            pairs=len(taught.new),
            width=new.dim,
            labels_left_out=nothing or (unlabelled and f"{unlabelled}, so heads were fitted without them"),
            cut=length.said(old.facts, new.facts),
            failed=[arm for arm in shown if arm.not_run],
        ),
        choices=advised.choices,
        during=advised.during,
        arms=shown,
        old=_side(old, everything[0]),
        new=_side(new, everything[-1]),
        data=collection.name,
        documents=len(collection),
        rows=costs.rows,
        queries=len(predicted.queries),
        truth=collection.truth,
        k=k,
        check=check,
        kind_of_upgrade=kind_of_upgrade(alike),
        likeness=alike,
        hours_full=costs.hours(1.0, able[0], 0),
        bytes_old=float(costs.rows * old.dim * FLOAT),
        bytes_new=float(costs.rows * new.dim * FLOAT),
        level=level,
        seed=seed,
        examples=examples.examples(bench, {arm.id: arm for arm in able}, advised.now, held_out),
        facts={
            "pairs to fit on": len(taught.new),
            "documents searched": len(parts.gallery),
            "queries to choose by": len(parts.choose),
            **collection.facts,
            **(facts or {}),
        },
        environment=environment.describe(),
        command=command,
        started=began,
        seconds=round(time.perf_counter() - started + seconds_encoding, 3),
        seconds_encoding=round(seconds_encoding, 3),
    )


def _enough(documents: int) -> int:
    """Queries in each half: their number times that of the documents decides how long it takes."""
    return min(5000, max(1000, _CELLS // documents))


class _Telling:
    """Progress, where somebody listens."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(what, done, total)


def _checked(side: Vectors, collection: Collection) -> Vectors:
    """Unit vectors, as many as there are documents and queries."""
    asked = 0 if collection.relevant is None else len(collection.query_ids)
    given = 0 if side.queries is None else len(side.queries)
    if len(side.documents) != len(collection) or (asked and given != asked):
        raise DataError(
            f"{side.name} gives {len(side.documents)} vectors of documents and {given} of queries; {collection.name} has "
            f"{len(collection)} documents and {asked} queries."
        )
    documents = pairing.rows(side.documents, f"{side.name} document")
    pairing.distinct(documents, f"{side.name} document")
    queries = pairing.rows(side.queries, f"{side.name} query") if asked else None
    if queries is not None and queries.shape[1] != documents.shape[1]:
        raise ShapeError(f"{side.name}: documents have {documents.shape[1]} dimensions, queries {queries.shape[1]}.")
    return Vectors(
        side.name, side.fingerprint, arms.unit(documents, side.name).numpy(),
        None if queries is None else arms.unit(queries, side.name).numpy(),
        side.document_seconds, side.query_seconds, side.facts,
    )  # fmt: skip


def _blocks(bench: Bench, asked: Asked) -> NDArray[np.int64] | None:
    """Codes of the blocks of queries; None where each is its own."""
    blocks = bench.split.blocks[asked.queries]
    names, codes = np.unique(blocks, return_inverse=True)
    return None if len(names) == len(blocks) else codes.astype(np.int64)


def _arms(
    bench: Bench, able: list[Arm], fusions: list[str], marks: list[list[Measured]], asked: Asked, costs: Costs, level: float
) -> list[Shown]:
    """The arms as they are shown: predicted with intervals, beside what held-out queries gave."""
    blocks = _blocks(bench, asked)
    predicted, held_out = marks
    now_ = next(m for arm, m in zip(able, predicted, strict=True) if arm.id == arms.KEEP).recall[:, :1]
    held_now = next(m for arm, m in zip(able, held_out, strict=True) if arm.id == arms.KEEP).recall[:, 0].mean()
    stages = len(bench.gallery.stages)
    columns = [c for m in predicted for c in (m.recall, m.ap, m.recall - now_)]
    estimates = iter(mean_intervals(np.concatenate(columns, 1), blocks, level, reach=1.0))
    found = []
    for arm, fusion, held in zip(able, fusions, held_out, strict=True):
        recall, ap, against = ([next(estimates) for _ in range(stages)] for _ in range(3))
        real = (held.recall.mean(0), held.ap.mean(0), held.recall.mean(0) - held_now)
        dims = (bench.old.dim, arm.new_documents.shape[1])

        def figures(stage: int, sides: Any = (recall, ap, against), real: Any = real) -> list[Figure]:
            found = ((side[stage], float(one[stage])) for side, one in zip(sides, real, strict=True))
            return [_figure(e, low, value) for (e, value), low in zip(found, (0.0, 0.0, -1.0), strict=True)]

        curve = []
        for stage, fraction in enumerate(bench.gallery.stages):
            hours = 0.0 if arm.kind == "as it is" else costs.hours(fraction, arm, len(bench.collection))
            stored = costs.rows * FLOAT * ((1 - fraction) * dims[0] + fraction * dims[1])
            at, precision, gained = figures(stage)
            if stage == 0 and arm.kind in ("as it is", "two encoders"):
                gained = Figure(0.0, 0.0, 0.0, 0.0)  # the very search that it is compared with
            curve.append(Point(fraction, at, precision, gained, hours, stored))
        if arm.kind == "as it is":
            curve, fusion = curve[:1], "cosine"
        found.append(
            Shown(
                arm.id, arm.title, arm.kind, arm.idea, curve, fusion, round(arm.fit_seconds, 3), costs.query_seconds(arm)
            )
        )  # fmt: skip
    return found


def _figure(estimate: Estimate, least: float, realised: float) -> Figure:
    """A share, or a difference of shares: the bootstrap knows nothing of their bounds."""
    low, high = (None if bound is None else min(max(bound, least), 1.0) for bound in (estimate.low, estimate.high))
    return Figure(estimate.value, low, high, realised)


def _side(side: Vectors, point: Point) -> Side:
    return Side(side.name, side.dim, side.fingerprint, point.recall, point.ap, side.facts)


def _check(able: list[Arm], marks: list[list[Measured]], stages: Sequence[float]) -> Check:
    """Every predicted recall against that of the held-out queries, but of either encoder alone: in these the halves are alike."""
    keep = next(i for i, arm in enumerate(able) if arm.id == arms.KEEP)
    both = next(i for i, arm in enumerate(able) if arm.id == arms.TWO_ENCODERS)
    checked = [
        (i, stage)
        for i, arm in enumerate(able)
        for stage in range(len(stages))
        if i != keep and (stage or i != both) and (stage + 1 < len(stages) or arm.space != arms.OWN)
    ]
    predicted, held_out = (np.stack([side[i].recall[:, stage] for i, stage in checked], 1) for side in marks)
    differences = np.abs(predicted.mean(0) - held_out.mean(0))
    worst = int(differences.argmax())
    known = [measuring.known(side[keep], side[both]) for side in marks]
    spread = np.sqrt(sum(_left(m, by) / len(m) for m, by in zip((predicted, held_out), known, strict=True)))
    margin = 0.02
    return Check(
        len(held_out),
        len(checked),
        int((differences <= margin + 1e-9).sum()),
        float(differences[worst]),
        f"{able[checked[worst][0]].title} at {percent(stages[checked[worst][1]])}",
        float(1.96 * np.median(spread)),
        margin,
    )


def _left(marks: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """The variance of each column of marks [Q, M] that no linear function of `known` [Q, K] explains."""
    centred, by = marks - marks.mean(0), known - known.mean(0)
    left = centred - by @ np.linalg.lstsq(by, centred)[0]
    return np.asarray((left * left).mean(0))
