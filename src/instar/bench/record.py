"""The record: one JSON file a run, written at once, from which every table, verdict and page is made.

{
  "schema": 1, "id": "…", "kind": "run" | "trial" | "timing", "status": "ok" | "diverged" | "timeout" | "killed" | "error",
  "reason": null | "…",                                   a failure is a record with a reason
  "spec": {…},                                            what was asked: its hash is the id (see `identity`)
  "address": "gla:no_gate", "setting": "default" | "tuned" | "trial 3", "baseline": false,
  "budget": "1m", "split": "test" | "valid", "data": {"sha256": …, …facts}, "card": "version of the card",
  "curve": [[step, loss, seconds], …], "train_tokens": …,
  "metrics": {"bits_per_byte@T": {"value": …, "totals": […], "weights": […]}, …},         quality, item by item
  "costs": {"parameters": …, "peak_train_bytes": …, …},                                   deterministic
  "times": {"gla": {"prefill_seconds@256": {"minimum":…, "median":…, "rounds": […], "cpu": […]}}, …},   kind "timing" only
  "resources": {"wall_seconds", "cpu_seconds", "peak_rss_bytes", "threads", "load_before", "load_after"},
  "environment": {…}, "command": "instar …", "started": "…", "finished": "…"
}

Beside them, of a problem that states floors: floors.json, {"schema": 1, "data": sha256, "floors": {"accuracy": [0.259, "…"]}}.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from instar import catalogue, files
from instar.errors import RecordError
from instar.items import Floor, Items

SCHEMA = 1
Record = dict[str, Any]
_REQUIRED = {"schema", "id", "kind", "status", "spec", "address"}


def identity(spec: dict[str, Any]) -> str:
    """The name of a run: a hash of everything that decides its outcome, and of nothing else."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """The records of a folder: `runs/<id>.json`, beside the plan and the floors of its data.

    Floors belong to data and not to runs, and stand in a file of their own, so that runs of before a problem stated any have them
    too, and verdicts are read without making the data again.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.runs = self.root / "runs"
        self.floors = self.root / "floors.json"

    def path(self, name: str) -> Path:
        return self.runs / f"{name}.json"

    def has(self, name: str) -> bool:
        return self.path(name).is_file()

    def put(self, record: Record) -> None:
        files.folder(self.runs)
        files.write_json(self.path(record["id"]), record)

    def get(self, name: str) -> Record:
        return load(self.path(name))

    def all(self) -> Iterator[Record]:
        """Every record, the oldest first; those of runs with the `floors` of their data, where these are known."""
        data, floors = load_floors(self.floors) if self.floors.is_file() else ("", {})
        for one in sorted(map(load, self.runs.glob("*.json")), key=lambda r: (r.get("finished", ""), r["id"])):
            yield {**one, "floors": floors} if floors and one["spec"].get("data") == data else one

    def put_floors(self, data: str, floors: dict[str, Floor]) -> None:
        """Keep what is known of the data with that hash."""
        files.folder(self.root)
        files.write_json(self.floors, {"schema": SCHEMA, "data": data, "floors": floors})


def comparison(record: Record) -> dict[str, Any]:
    """What a run has in common with all that it may be compared with: problem, settings, data and budget."""
    problem = record["spec"]["problem"]
    tuned = set(catalogue.problem(problem["slug"]).knobs)  # a tuned learning rate does not make it another comparison
    return {
        "problem": problem["slug"],
        "settings": {k: v for k, v in problem["settings"].items() if k not in tuned},
        "data": record["spec"].get("data"),
        "budget": record.get("budget"),
    }


def current(records: Iterable[Record]) -> list[Record]:
    """All but runs that later ones of the same method in the same comparison replace, since its setting is another now.

    Tuned after a run at its default, or its file edited: seeds of two settings are not seeds of one method.
    """
    records = list(records)
    settings: list[tuple[str, str] | None] = []
    for one in records:
        where = identity({**comparison(one), "address": one["address"]}) if one["kind"] == "run" else None
        settings.append(None if where is None else (where, identity({**one["spec"], "seed": None})))
    latest: dict[str, tuple[str, str]] = {}
    for one, setting in zip(records, settings, strict=True):
        if setting is not None:
            latest[setting[0]] = max(latest.get(setting[0], ("", "")), (one.get("finished", ""), setting[1]))
    return [one for one, setting in zip(records, settings, strict=True) if setting is None or latest[setting[0]][1] == setting[1]]


def load(path: Path) -> Record:
    """Read one record. Raises RecordError for a file that is cut off or is none of ours."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is no complete record ({error}). Delete it and run the same command again.") from error
    if not isinstance(record, dict) or _REQUIRED - record.keys():
        raise RecordError(f"{path} is no record of Instar: it must hold {', '.join(sorted(_REQUIRED))}.")
    if record["schema"] != SCHEMA:
        raise RecordError(f"{path} has schema {record['schema']!r}; this version reads {SCHEMA}.")
    if record["kind"] in ("run", "trial", "timing") and not _complete(record["spec"], seeded=record["kind"] != "timing"):
        raise RecordError(
            f"{path} does not say which problem it is of, with which settings. Delete it and run the same command again."
        )
    return record


def _complete(spec: Any, *, seeded: bool) -> bool:
    problem = spec.get("problem") if isinstance(spec, dict) else None
    told = isinstance(problem, dict) and isinstance(problem.get("slug"), str) and isinstance(problem.get("settings"), dict)
    return told and (not seeded or isinstance(spec.get("seed"), int))


def load_floors(path: Path) -> tuple[str, dict[str, Floor]]:
    """The hash of the data, and its floors by metric. Raises RecordError."""
    try:
        table = json.loads(path.read_text("utf-8"))
        return table["data"], {name: Floor(float(value), str(what)) for name, (value, what) in table["floors"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordError(f"{path} is damaged ({error}). Delete it and run the same command again.") from error


def load_all(folders: Iterable[Path]) -> list[Record]:
    """The records of several folders, each once. Raises RecordError when there are none."""
    folders = list(folders)
    found = {record["id"]: record for folder in folders for record in Store(folder).all()}
    if not found:
        raise RecordError(f"There are no records under {', '.join(map(str, folders))} (expected runs/*.json).")
    return list(found.values())


def items(record: Record, metric: str) -> Items | None:
    """A quality metric of a record, item by item; None when it has none."""
    entry = record.get("metrics", {}).get(metric)
    return Items(entry["totals"], entry["weights"]) if entry else None
