"""What a sink is, and what of a record it is given."""

from __future__ import annotations

import abc
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from instar.bench.record import Record


@dataclass(frozen=True)
class Run:
    """One run as trackers see it: a name, settings, figures and a curve."""

    id: str
    """The record's; a timing pass, which is of several methods, has the method behind it."""
    group: str
    """The problem."""
    name: str
    settings: Mapping[str, str]
    figures: Mapping[str, float]
    curve: tuple[tuple[int, float], ...]
    """(step, training loss)."""
    ok: bool
    reason: str
    started: float
    """Seconds since 1970, as `ended`."""
    ended: float


class Sink(abc.ABC):
    """A tracker. What it holds already is not written twice; what is put is written when `put` returns."""

    @abc.abstractmethod
    def put(self, run: Run) -> None:
        """Take one run."""


def runs(record: Record) -> Iterator[Run]:
    """The runs of a record: one; of a timing pass one a method."""
    spec = record["spec"]
    problem, method = spec.get("problem") or {}, spec.get("method") or {}
    seed = spec.get("seed")
    settings = {
        "kind": record["kind"],
        "setting": record.get("setting"),
        "seed": seed,
        "steps": spec.get("steps"),
        "budget": record.get("budget"),
        "split": record.get("split"),
        "data": record.get("data", {}).get("sha256"),
        "command": record.get("command"),
        **{f"problem.{key}": value for key, value in problem.get("settings", {}).items()},
        **{f"method.{key}": value for key, value in method.get("arguments", {}).items()},
        **{f"environment.{key}": value for key, value in record.get("environment", {}).items()},
    }
    figures = {
        **{f"metric/{name}": float(entry["value"]) for name, entry in record.get("metrics", {}).items()},
        **{f"cost/{name}": float(value) for name, value in record.get("costs", {}).items()},
        **{f"resource/{k}": float(v) for k, v in record.get("resources", {}).items() if isinstance(v, (int, float))},
    }
    common: dict[str, Any] = {
        "group": str(problem.get("slug", "")),
        "settings": {key: _text(value) for key, value in settings.items() if value is not None},
        "curve": tuple((int(step), float(loss)) for step, loss, *_ in record.get("curve", ())),
        "ok": record["status"] == "ok",
        "reason": f"{record['status']}: {record.get('reason') or ''}",
        "ended": _seconds(record.get("finished")),
        "started": _seconds(record.get("started") or record.get("finished")),
    }
    if record["kind"] != "timing":
        yield Run(id=record["id"], name=f"{record['address']} seed {seed}", figures=figures, **common)
        return
    for address, times in record.get("times", {}).items():
        medians = {f"time/{name}": float(entry["median"]) for name, entry in times.items()}
        yield Run(id=f"{record['id']}-{address}", name=f"{address} timing", figures={**figures, **medians}, **common)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _seconds(when: Any) -> float:
    try:
        return datetime.fromisoformat(str(when)).timestamp()
    except ValueError:
        return 0.0
