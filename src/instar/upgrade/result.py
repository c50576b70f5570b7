"""What the report on a change of encoder found: plain data from which page, terminal and JSON are written.

Words. An *arm* is a way to search while not everything is re-encoded: it says what queries the rows that are still old, and what
the rows that are new store. A *point* is an arm with a share of the rows re-encoded (0: nothing was, 1: everything).
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

Kind = Literal["as it is", "two encoders", "switch", "map", "trained head"]
"""keep everything; both encoders answer each query; only the query encoder changes; a closed form or small network after the new
encoder, rows store the new encoder's own vectors; a head that makes new vectors of its own."""


Truth = Literal["queries", "labels", "neighbours"]
"""How it is known what is right (see `data.collection.Collection`)."""


@dataclass(frozen=True)
class Figure:
    """A predicted value with its interval, and what held-out queries gave."""

    value: float
    low: float | None = None
    high: float | None = None
    realised: float | None = None
    """On queries that took no part in fitting, choosing or predicting."""


@dataclass(frozen=True)
class Point:
    """An arm at one share of re-encoded rows."""

    fraction: float
    recall: Figure
    """Recall at k: the share of the relevant documents (of the first k, where there are more) that stand among the first k."""
    ap: Figure
    """Average precision: its mean is the mAP."""
    against_old: Figure
    """Recall minus that of the search as it is now, paired by query."""
    hours: float | None
    """Encoding that share of all rows, and fitting; None where no speed is known."""
    bytes: float
    """Stored vectors of all rows."""


@dataclass(frozen=True)
class Arm:
    """One way to search during the change."""

    id: str
    """`keep`, `two_encoders`, `no_map`, or the address of a head: `ridge`, `bt2:cayley`."""
    title: str
    kind: Kind
    idea: str
    """What it does, in a sentence."""
    curve: list[Point] = field(default_factory=list)
    """By share of re-encoded rows; empty where it could not run."""
    fusion: str = "cosine"
    """How scores of old and new rows became one list: cosine, quantile or rank; chosen on the fitting queries."""
    fit_seconds: float = 0.0
    query_seconds: float | None = None
    """Encoding one query."""
    not_run: str = ""
    """Why there is no curve."""
    order: str = "random"
    """In which order rows were re-encoded."""


@dataclass(frozen=True)
class Choice:
    """What to do with a given effort."""

    fraction: float
    hours: float | None
    arm: str
    recall: Figure
    sure: bool
    """Whether it beats the simpler arms beyond chance; otherwise the simplest of those that are level was taken."""
    words: str


@dataclass(frozen=True)
class During:
    """One way to search from the first re-encoded row to the last, since nobody changes it at every tenth."""

    arm: str
    fusion: str
    """How scores of old and new rows become one list: that of the arm."""
    sure: bool
    """Whether it beats the simpler arms beyond chance; otherwise the simplest of those that are level was taken."""
    words: str


@dataclass(frozen=True)
class Check:
    """Predictions held against held-out queries."""

    queries: int
    figures: int
    """Arms and shares that were compared."""
    within: int
    """Of them within `margin`."""
    worst: float
    """Largest difference."""
    worst_at: str
    chance: float
    """Half-width of the 95 % interval of such a difference by the chance of the queries alone."""
    margin: float = 0.02


@dataclass(frozen=True)
class Side:
    """An encoder."""

    name: str
    dim: int
    fingerprint: str
    own_recall: Figure
    """Everything encoded by it."""
    own_ap: Figure
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The report on a change of encoder."""

    headline: str
    """The answer in one sentence."""
    advice: list[str]
    """What to do, in sentences, the most important first."""
    cautions: list[str]
    """What a reader must know before believing it."""
    choices: list[Choice]
    """The best arm by effort: nothing, a tenth, …, everything re-encoded."""
    arms: list[Arm]
    old: Side
    new: Side
    data: str
    documents: int
    """In the sample that was measured."""
    rows: int
    """In the index that is to change; equals `documents` unless the user said more."""
    queries: int
    truth: Truth
    k: int
    check: Check
    kind_of_upgrade: str
    """same encoder fine-tuned, same family, unrelated: as the vectors themselves tell."""
    during: During | None = None
    """What to search with while rows are re-encoded; None in records of before it was kept."""
    likeness: Mapping[str, float] = field(default_factory=dict)
    """How alike the spaces are, without any label: linear CKA, shared nearest neighbours, cosine where the widths are equal."""
    hours_full: float | None = None
    bytes_old: float = 0.0
    bytes_new: float = 0.0
    level: float = 0.95
    seed: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Queries and the first documents under old, the recommended arm, and new: {query, relevant, old, arm, new} as texts."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Of the data and the split."""
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    started: str = ""
    seconds: float = 0.0
    seconds_encoding: float = 0.0
    """Of them, spent in the encoders."""


def as_json(report: Report) -> str:
    """The record, for programs."""
    return values.as_json({"schema": SCHEMA, "kind": "encoder", **asdict(report)}, indent=1, allow_nan=False) + "\n"


def load(path: Path) -> Report:
    """Read a record back. Raises RecordError."""
    try:
        table = json.loads(Path(path).read_text("utf-8"))
        if not isinstance(table, dict) or table.pop("kind", None) != "encoder" or table.pop("schema", None) != SCHEMA:
            raise RecordError(f"{path} is no record of `instar encoder report` of schema {SCHEMA}.")
        return Report(**{**table, **_parts(table)})
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"{path} is no complete record of `instar encoder report` ({error}).") from error


def _parts(table: dict[str, Any]) -> dict[str, Any]:
    def figures(found: dict[str, Any], *names: str) -> dict[str, Any]:
        return {**found, **{name: Figure(**found[name]) for name in names}}

    def arm(found: dict[str, Any]) -> Arm:
        return Arm(**{**found, "curve": [Point(**figures(p, "recall", "ap", "against_old")) for p in found["curve"]]})

    return {
        "old": Side(**figures(table["old"], "own_recall", "own_ap")),
        "new": Side(**figures(table["new"], "own_recall", "own_ap")),
        "arms": [arm(a) for a in table["arms"]],
        "choices": [Choice(**figures(c, "recall")) for c in table["choices"]],
        "check": Check(**table["check"]),
        "during": During(**found) if (found := table.get("during")) else None,
    }
