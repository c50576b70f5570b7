"""Claims: sentences of papers, run and judged here. A verdict is computed from records; it is stored nowhere and typed nowhere.

Claims that ask for the same problem under the same conditions share one folder of `results/` (and so their runs).
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from instar import catalogue
from instar.bench import record, statistics
from instar.bench.budget import Budget
from instar.bench.record import Record, Store
from instar.bench.statistics import Estimate, Verdict
from instar.cards import Card, Claim, Metric
from instar.errors import PlanError, UnknownNameError
from instar.items import Items

QUICK_SEEDS = 3
_PLAN_KEYS = ("budget", "data")
_OF_THE_PLAN = ("budget", "trials", "tune", "baseline")
"""Conditions of a claim that are no settings of its problem: how much is trained, how rates are found, what stands beside."""
_DRAWN_FROM: dict[str, Literal["seeds", "rounds of one timing pass", "closed form"]] = {
    "quality": "seeds",
    "time": "rounds of one timing pass",
    "cost": "closed form",
}
_ENDED = {"diverged": "diverged", "timeout": "ran out of time", "killed": "were killed"}


@dataclass(frozen=True)
class Judgement:
    """A claim with what was found. `value` and `interval` are the improvement in the claimed direction: a difference for quality
    (better / worse for `ratio`), a ratio for times and costs, the figure itself for slope, threshold and exact."""

    method: str
    claim: str
    kind: str
    measure: str
    subject: str
    against: str | float | None
    direction: str
    margin: float
    verdict: Verdict
    value: float | None
    interval: tuple[float, float] | None
    seeds: int
    """What the interval is drawn from; `drawn_from` says what these are."""
    drawn_from: Literal["seeds", "rounds of one timing pass", "closed form", ""]
    text: str
    source: str
    paper_value: str | None
    reason: str | None
    core_minutes: float
    command: str


@dataclass(frozen=True)
class Work:
    """One folder of results: the runs that a set of claims needs."""

    folder: str
    problem: str
    methods: tuple[str, ...]
    settings: dict[str, Any]
    budget: str
    seeds: int
    trials: int
    tune: tuple[str, ...]
    baseline: str
    train: bool
    timed: tuple[str, ...]


def results_folder() -> Path:
    """`results/` of the working folder, else the records that came with the package."""
    local = Path("results")
    return local if local.is_dir() else Path(__file__).resolve().parents[1] / "_results"


def select(addresses: Iterable[str] = (), claim: str | None = None) -> list[tuple[Card, Claim]]:
    """The claims of some methods (all when none is named); a preset keeps the claims that mention it."""
    named = [catalogue.parse(a) for a in addresses]
    chosen = list(catalogue.claims([a.card for a in named] if named else None))
    for address in named:
        if address.preset != "default":
            chosen = [
                (card, c) for card, c in chosen if card.slug != address.slug or str(address) in (subject(card, c), str(c.against))
            ]
    if claim is not None:
        known = {c.id for _, c in chosen}
        if claim not in known:
            raise UnknownNameError.among("claim", claim, known)
        chosen = [(card, c) for card, c in chosen if c.id == claim]
    return chosen


def subject(card: Card, claim: Claim) -> str:
    """The address that the claim speaks of."""
    return str(catalogue.parse(claim.subject or card.slug))


def metric_of(claim: Claim) -> tuple[str, Metric]:
    """The problem and metric that a claim measures."""
    problem, _, metric = str(claim.measure).partition(".")
    return problem, catalogue.problem(problem).metric(metric)


def works(claims: Sequence[tuple[Card, Claim]], seeds: int | None = None, quick: bool = False) -> list[Work]:
    """The runs that these claims need, those with equal conditions together. Raises PlanError for less than one seed."""
    if seeds is not None and seeds < 1:
        raise PlanError(f"A claim is judged on 1 seed at least; received {seeds}.")
    found: dict[str, Work] = {}
    for card, claim in claims:
        if claim.kind == "untestable":
            continue
        problem, metric = metric_of(claim)
        settings = {k: v for k, v in claim.conditions.items() if k not in _OF_THE_PLAN}
        timing = metric.kind == "time"
        budget = str(claim.conditions.get("budget", catalogue.problem(problem).budget if metric.kind == "quality" else "1steps"))
        name = folder_name(claim, quick)
        names = [subject(card, claim)]
        if isinstance(claim.against, str) and not claim.against.startswith("self@"):
            names.append(str(catalogue.parse(claim.against)))
        wanted = [metric.id, *_conditions(claim)] if timing else []
        old = found.get(name)
        count = seeds or (QUICK_SEEDS if quick else 1 if metric.kind != "quality" else claim.seeds)
        found[name] = Work(
            folder=name,
            problem=problem,
            methods=tuple(dict.fromkeys([*(old.methods if old else ()), *names])),
            settings=settings,
            budget=_tenth(budget) if quick and metric.kind == "quality" else budget,
            seeds=max(count, old.seeds if old else 1),
            trials=1 if quick else int(claim.conditions.get("trials", 1)),
            tune=tuple(claim.conditions.get("tune", ())),
            baseline=str(claim.conditions.get("baseline", "")),
            train=not timing or bool(old and old.train),
            timed=tuple(dict.fromkeys([*(old.timed if old else ()), *wanted])),
        )
    return list(found.values())


def folder_name(claim: Claim, quick: bool = False) -> str:
    """Readable, and the same for equal conditions: `text-tinyshakespeare-800steps-1a2b3c`."""
    problem, metric = metric_of(claim)
    readable = [str(v) for k, v in claim.conditions.items() if k in _PLAN_KEYS and isinstance(v, str)]
    kind = {"time": "timing", "cost": "costs", "quality": "runs"}[metric.kind]
    digest = hashlib.sha256(json.dumps([problem, kind, claim.conditions], sort_keys=True).encode()).hexdigest()[:6]
    words = ["quick"] if quick else []
    words += [problem, *([kind] if kind != "runs" else sorted(readable, key=lambda w: w[0].isdigit()))]
    return "-".join([*(re.sub(r"[^\w.]+", "-", word).strip("-") for word in words), digest])  # a name on every system


def judge_all(claims: Iterable[tuple[Card, Claim]], results: Path) -> list[Judgement]:
    """The verdicts of many claims; each folder of records is read once."""
    read = functools.cache(lambda folder: list(Store(folder).all()))
    return [
        judge(card, claim, results, records=[] if claim.kind == "untestable" else read(results / folder_name(claim)))
        for card, claim in claims
    ]


def judge(card: Card, claim: Claim, results: Path, quick: bool = False, *, records: Sequence[Record] | None = None) -> Judgement:
    """The verdict of one claim from the records that are there, or from its `records` where they are read already."""
    verdict: Verdict = "not testable at this scale"
    estimate: Estimate | None = None
    reason, minutes = claim.reason, 0.0
    if claim.kind != "untestable":
        records = record.current(Store(results / folder_name(claim, quick)).all() if records is None else records)
        minutes = sum(r.get("resources", {}).get("cpu_seconds", 0.0) for r in records) / 60
        estimate, verdict, reason = _decide(card, claim, records)
    return Judgement(
        method=card.slug,
        claim=claim.id,
        kind=claim.kind,
        measure=claim.measure or "",
        subject=subject(card, claim),
        against=claim.against,
        direction=claim.direction,
        margin=claim.margin,
        verdict=verdict,
        value=None if estimate is None else estimate.value,
        interval=None if estimate is None else estimate.interval,
        seeds=0 if estimate is None else estimate.seeds,
        drawn_from=_DRAWN_FROM[metric_of(claim)[1].kind] if estimate else "",
        text=claim.text,
        source=claim.source,
        paper_value=claim.paper_value,
        reason=reason,
        core_minutes=round(minutes, 2),
        command=f"instar reproduce {card.slug} --claim {claim.id}" + (" --quick" if quick else ""),
    )


def _decide(card: Card, claim: Claim, records: list[Record]) -> tuple[Estimate | None, Verdict, str | None]:
    metric = metric_of(claim)[1]
    if claim.kind == "slope":
        return _slope(claim, subject(card, claim), records)
    name = metric.id.partition("@")[0]
    measures = [f"{name}@{condition}" for condition in claim.over] or [metric.id]
    try:
        judged = [_one(claim, metric, measure, subject(card, claim), records) for measure in measures]
    except statistics.NoRatioError as error:
        return None, "undecided", str(error)
    if any(estimate is None for estimate, _ in judged):
        failures = [f"{r['address']}: {r['status']}: {r['reason']}" for r in records if r["status"] != "ok"]
        return None, "undecided" if failures else "not run", "; ".join(failures[:3]) or None
    unlearnt = [_unlearnt(claim, measure, subject(card, claim), records) for measure in measures]
    verdict = statistics.together(["undecided" if why else v for (_, v), why in zip(judged, unlearnt, strict=True)])
    lost = _lost(claim, metric, subject(card, claim), records)
    if subject(card, claim) in lost and verdict != "does not hold here":
        verdict = "undecided"  # the seeds that are left speak for a method that always trains
    reasons = [next(filter(None, unlearnt), ""), *lost.values()]
    return judged[-1][0], verdict, "; ".join(filter(None, reasons)) or None


def _lost(claim: Claim, metric: Metric, who: str, records: list[Record]) -> dict[str, str]:
    """How many seeds of either side left no figure, in words, by address. Times and costs are not of seeds."""
    sides = [who]
    if isinstance(claim.against, str) and not claim.against.startswith("self@"):
        sides.append(str(catalogue.parse(claim.against)))
    found = {}
    for address in sides if metric.kind == "quality" else ():
        ended: dict[int, str] = {}
        for item in records:
            if item["kind"] == "run" and item["address"] == address and ended.get(seed := int(item["spec"]["seed"])) != "ok":
                ended[seed] = item["status"]
        counts = Counter(status for status in ended.values() if status != "ok")
        if counts:
            ways = (f"{count} of {len(ended)} seeds {_ENDED.get(status, 'failed')}" for status, count in sorted(counts.items()))
            found[address] = f"{address}: {', '.join(ways)}"
    return found


def _one(claim: Claim, metric: Metric, measure: str, who: str, records: list[Record]) -> tuple[Estimate | None, Verdict]:
    read = _reader(metric)
    mine = read(records, who, measure)
    if isinstance(claim.against, float):
        theirs: dict[Any, Any] | None = None
    elif str(claim.against).startswith("self@"):
        theirs = read(records, who, f"{measure.partition('@')[0]}@{str(claim.against).removeprefix('self@')}")
    else:
        theirs = read(records, str(catalogue.parse(str(claim.against))), measure)
    keys = sorted(k for k in mine if theirs is None or k in theirs)
    if not keys:
        return None, "not run"
    a = [mine[k] for k in keys]
    b = None if theirs is None else [theirs[k] for k in keys]
    if claim.kind in ("threshold", "exact"):
        wanted = b or [float(str(claim.against))] * len(a)
        found, targets = ([x.value if isinstance(x, Items) else x for x in values] for values in (a, wanted))
        value = statistics.value(a) if metric.kind == "quality" and not claim.same_items else _spread(found)
        if claim.kind == "exact":
            return value, "holds" if found == targets else "does not hold here"
        shifted = Estimate(value.value - targets[0], *_shift(value, targets[0]), value.seeds, value.items)
        return value, statistics.superior(statistics.improvement(shifted, claim.direction), claim.margin)
    if b is None:
        raise PlanError(f"The claim {claim.id} compares with a number; its kind must be threshold or exact.")
    if claim.kind == "ratio":
        better, worse = (b, a) if claim.direction == "lower" else (a, b)
        ratio = statistics.ratio_of_scores(better, worse) if metric.kind == "quality" else statistics.ratio(better, worse)
        if metric.kind == "cost":
            ratio = statistics.exact(ratio.value)
        return ratio, statistics.superior(ratio, claim.margin)
    difference = statistics.paired(a, b) if metric.kind == "quality" else statistics.exact(a[0] - b[0])
    gain = statistics.improvement(difference, claim.direction)
    return gain, statistics.equivalent(gain, claim.margin) if claim.kind == "parity" else statistics.superior(gain, claim.margin)


def _unlearnt(claim: Claim, measure: str, who: str, records: list[Record]) -> str:
    """Why a parity says nothing of the methods: both are at the floor of the problem. Empty where it says something."""
    floor = next((r["floors"][measure] for r in records if measure in r.get("floors", {})), None)
    if floor is None or claim.kind != "parity" or str(claim.against).startswith("self@"):
        return ""
    mine, theirs = (_items(records, address, measure) for address in (who, str(catalogue.parse(str(claim.against)))))
    seeds = mine.keys() & theirs.keys()
    means = [sum(found[seed].value for seed in seeds) / len(seeds) for found in (mine, theirs)]
    return str(floor.holds(means, claim.direction, claim.margin))


def _slope(claim: Claim, who: str, records: list[Record]) -> tuple[Estimate | None, Verdict, str | None]:
    metric = metric_of(claim)[1]
    read = _reader(metric)
    columns = [list(read(records, who, measure).values()) for measure in _conditions(claim)]
    if not all(columns):
        return None, "not run", None
    found = statistics.slope([float(c) for c in claim.over], list(zip(*columns, strict=False)))
    target = claim.against if isinstance(claim.against, float) else 1.0
    shifted = Estimate(found.value - target, *_shift(found, target), found.seeds)
    return found, statistics.superior(statistics.improvement(shifted, claim.direction), claim.margin), None


def _reader(metric: Metric) -> Callable[[list[Record], str, str], dict[Any, Any]]:
    """What reads a metric of this kind. Timing passes hold seconds; of a rate so many a second are read."""
    rounds = functools.partial(_rounds, rate=metric.unit.endswith("/s"))
    kinds: dict[str, Callable[..., dict[Any, Any]]] = {"quality": _items, "cost": _costs, "time": rounds}
    return kinds[metric.kind]


def _items(records: list[Record], address: str, measure: str) -> dict[int, Any]:
    """Items by seed."""
    found = {}
    for item in records:
        if item["kind"] == "run" and item["status"] == "ok" and item["address"] == address:
            entry = record.items(item, measure)
            if entry is not None:
                found[int(item["spec"]["seed"])] = entry
    return found


def _costs(records: list[Record], address: str, measure: str) -> dict[int, float]:
    """A deterministic figure: every seed has the same."""
    for item in records:
        if item["kind"] == "run" and item["status"] == "ok" and item["address"] == address and measure in item["costs"]:
            return {0: item["costs"][measure]}
    return {}


def _rounds(records: list[Record], address: str, measure: str, *, rate: bool) -> dict[int, float]:
    """The rounds of the timing pass, which pair over methods and lengths."""
    for item in reversed(records):
        rounds = item.get("times", {}).get(address, {}).get(measure, {}).get("rounds")
        if item["kind"] == "timing" and rounds:
            return {number: 1 / seconds if rate else seconds for number, seconds in enumerate(rounds)}
    return {}


def _spread(values: Sequence[float]) -> Estimate:
    return statistics.exact(values[0]) if len(set(values)) == 1 else statistics.student(values)


def _shift(value: Estimate, by: float) -> tuple[float | None, float | None]:
    return (None, None) if value.low is None or value.high is None else (value.low - by, value.high - by)


def _conditions(claim: Claim) -> list[str]:
    """The other metrics that a claim reads beside its measure."""
    name = str(claim.measure).partition(".")[2].partition("@")[0]
    against = str(claim.against)
    return [f"{name}@{c}" for c in [*claim.over, *([against.removeprefix("self@")] if against.startswith("self@") else [])]]


def _tenth(budget: str) -> str:
    """A tenth of a budget, a step at least."""
    asked = Budget.parse(budget)
    if asked.kind == "seconds":
        return f"{asked.amount / 10:g}s"
    return f"{max(1, int(asked.amount) // 10)}{'steps' if asked.kind == 'steps' else 'tok'}"
