"""What the gate found: the record from which every output (terminal, page, Markdown, JUnit, JSON) is written.

Everything here is plain data: `as_json` writes it, `load` reads it back, and no output computes anything of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from instar.bench.record import SCHEMA
from instar.errors import RecordError
from instar.gate import values

Decision = Literal["pass", "fail", "undecided"]

EXIT_CODES: Mapping[Decision, int] = {"pass": 0, "fail": 1, "undecided": 2}
"""3 is an error (`InstarError.exit_code`)."""


@dataclass(frozen=True)
class Figure:
    """A measured value with its interval, where one can be given."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Side:
    """One version."""

    name: str
    mean: Figure
    """Mean mark: accuracy where marks are right or wrong."""
    missing: int
    """Items without an answer."""
    latency: Mapping[str, float] = field(default_factory=dict)
    """Seconds by percentile: {"p50": …, "p95": …}; empty where no run was timed."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """`size_bytes`, `peak_bytes`, `wall_seconds`, `cpu_seconds`, where a run was made."""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """One figure of the comparison, in the order in which it is read."""

    id: str
    title: str
    figure: Figure
    unit: Literal["share", "score", "count", "p"]
    explanation: str


@dataclass(frozen=True)
class Test:
    """One budget, tested."""

    scope: str
    """"all items", or "column = value"."""
    kind: Literal["max_nfr", "max_accuracy_drop", "max_flips"]
    items: int
    budget: float
    figure: Figure
    decision: Decision
    p: float | None
    """Of "not above the budget", one-sided; adjusted over the slices. None for counts."""
    needed: int | None
    """Items that would decide an undecided test, if the shares stay as they are; None where no realistic number would."""
    words: str
    """The finding as a sentence."""


@dataclass(frozen=True)
class Slice:
    """The items that share a value of a column."""

    column: str
    value: str
    items: int
    before: float
    """Mean mark of the old version."""
    after: float
    negative: int
    positive: int
    nfr: Figure
    p: float
    """McNemar's exact test (for scores: the sign test of falls and rises), two-sided, Holm-adjusted over all slices."""


@dataclass(frozen=True)
class Broken:
    """An item that was right (or better) and became wrong (or worse)."""

    id: str
    input: str | None
    label: str | None
    before: str
    after: str
    drop: float
    """Mark of the old version minus the new one's."""
    always: bool
    """Whether every repeated run of the old version was right, so that noise is no likely cause."""


@dataclass(frozen=True)
class Group:
    """Broken items that are alike, the worst first."""

    title: str
    """The words that set these items apart."""
    size: int
    """Of the whole group; `items` may be cut."""
    drop: float
    """Sum of the drops."""
    items: list[Broken]


@dataclass(frozen=True)
class Result:
    """The judgement of a change."""

    decision: Decision
    headline: str
    """The answer in one sentence."""
    reasons: list[str]
    """Why, in sentences, the most important first."""
    cautions: list[str]
    """What a reader must know before believing it."""
    old: Side
    new: Side
    items: int
    missing: int
    """Items that some run did not answer; they are in no measure, and with any of them nothing passes."""
    missing_ids: dict[str, str]
    """Some of them, with the reason."""
    blocks: int | None
    """Natural blocks, where the user named a column for them."""
    task: str
    metric: str
    chosen: str
    """Why this task and metric, where they were not given."""
    binary: bool
    level: float
    tolerance: float
    floor: Figure | None
    """Share of items that flip between two runs of the old version; None where no such run was supplied."""
    floor_runs: list[str]
    """Names of the repeated runs."""
    tests: list[Test]
    measures: list[Measure]
    slices: list[Slice]
    """Every slice, the most suspicious first."""
    slices_left_out: dict[str, str]
    """Column -> why it is no slice."""
    broken: list[Group]
    broken_ids: list[str]
    """Every broken item, the worst first."""
    fixed: int
    """Items that were wrong and became right."""
    policy: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    started: str = ""
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 2 undecided."""
        return EXIT_CODES[self.decision]


def as_json(result: Result) -> str:
    """The record, for programs."""
    return values.as_json({"schema": SCHEMA, "kind": "gate", **asdict(result)}, indent=1, allow_nan=False) + "\n"


def load(path: Path) -> Result:
    """Read a record back. Raises RecordError."""
    try:
        table = json.loads(Path(path).read_text("utf-8"))
        if not isinstance(table, dict) or table.pop("kind", None) != "gate" or table.pop("schema", None) != SCHEMA:
            raise RecordError(f"{path} is no record of `instar gate` of schema {SCHEMA}.")
        return Result(**{**table, **_parts(table)})
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"{path} is no complete record of `instar gate` ({error}).") from error


def _parts(table: dict[str, Any]) -> dict[str, Any]:
    def figure(found: dict[str, Any]) -> Figure:
        return Figure(**found)

    def group(found: dict[str, Any]) -> Group:
        return Group(**{**found, "items": [Broken(**item) for item in found["items"]]})

    return {
        "old": Side(**{**table["old"], "mean": figure(table["old"]["mean"])}),
        "new": Side(**{**table["new"], "mean": figure(table["new"]["mean"])}),
        "floor": figure(table["floor"]) if table["floor"] else None,
        "tests": [Test(**{**t, "figure": figure(t["figure"])}) for t in table["tests"]],
        "measures": [Measure(**{**m, "figure": figure(m["figure"])}) for m in table["measures"]],
        "slices": [Slice(**{**s, "nfr": figure(s["nfr"])}) for s in table["slices"]],
        "broken": [group(g) for g in table["broken"]],
    }
