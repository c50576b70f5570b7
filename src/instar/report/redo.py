"""What is needed to redo and to cite a comparison: command, data, budget, environment, methods."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from instar import catalogue
from instar.bench.record import Record
from instar.bench.summary import Group
from instar.errors import UnknownNameError
from instar.report import units


@dataclass(frozen=True)
class Source:
    """A method as its card tells it; `known` is False for one that is not in this catalogue."""

    address: str
    known: bool
    title: str = ""
    idea: str = ""
    when_not: str = ""
    deviations: tuple[str, ...] = ()
    bibtex: str = ""
    link: str = ""
    arguments: str = ""
    changed: bool = False
    """The card has changed since the runs were made."""


@dataclass(frozen=True)
class Redo:
    """The closing section of a comparison."""

    commands: list[str]
    facts: list[tuple[str, str]]
    environments: list[list[tuple[str, str]]]
    sources: list[Source]


def redo(group: Group) -> Redo:
    """Everything that the records say about how they were made."""
    runs = [run for row in group.rows for run in row.runs]
    every = [*runs, *group.trials, *([group.timing] if group.timing else [])]
    return Redo(
        commands=_distinct(r["command"] for r in every if r.get("command")),
        facts=_facts(group, runs, every),
        environments=[
            [(k.replace("_", " "), _plain(k, v)) for k, v in e.items()]
            for e in _unique(r["environment"] for r in every if r.get("environment"))
        ],
        sources=[_source(row.address, row.runs) for row in group.rows],
    )


def _facts(group: Group, runs: list[Record], every: list[Record]) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    if group.key.get("budget"):
        facts.append(("budget of a run", str(group.key["budget"])))
    steps = {row.address: run["spec"].get("steps") for row in group.rows for run in row.runs}
    if steps:
        facts.append(("training steps", "; ".join(f"{a}: {n}" for a, n in steps.items())))
    tokens = {row.address: run.get("train_tokens") for row in group.rows for run in row.runs}
    if any(tokens.values()):
        facts.append(("training tokens", "; ".join(f"{a}: {units.quantity(n, 'tokens')}" for a, n in tokens.items() if n)))
    facts.append(("settings", "; ".join(f"{k} = {v}" for k, v in group.key["settings"].items()) or "none"))
    if group.key.get("data"):
        facts.append(("data SHA-256", str(group.key["data"])))
    for key, value in next((r["data"] for r in runs if r.get("data")), {}).items():
        if key != "sha256":
            facts.append(
                (f"data: {key.replace('_', ' ')}", ", ".join(map(str, value)) if isinstance(value, list) else str(value))
            )
    used = [r["resources"] for r in every if r.get("resources")]
    cpu = sum(u.get("cpu_seconds") or 0 for u in used)
    if cpu:
        facts.append(("processor time in all", f"{units.number(cpu / 60, 3)} core-minutes in {len(every)} runs"))
    loads = [u[k] for u in used for k in ("load_before", "load_after") if u.get(k) is not None]
    if loads:
        facts.append(("load average of the machine", f"{min(loads):g} … {max(loads):g}"))
    return facts


def _source(address: str, runs: list[Record]) -> Source:
    arguments = _distinct("; ".join(f"{k} = {v}" for k, v in r["spec"]["method"]["arguments"].items()) for r in runs)
    text = " | ".join(a for a in arguments if a)
    try:
        card = catalogue.method(address.partition(":")[0])
    except UnknownNameError:
        return Source(address, False, arguments=text)
    paper = card.paper
    return Source(
        address,
        True,
        card.title,
        card.idea,
        card.when_not,
        tuple(card.deviations),
        paper.bibtex.strip() if paper else "",
        f"https://arxiv.org/abs/{paper.arxiv}" if paper and paper.arxiv else "",
        text,
        any(r.get("card") not in (None, card.version) for r in runs),
    )


def _plain(key: str, value: Any) -> str:
    if value is None:
        return "unknown"
    if key.endswith("bytes") and isinstance(value, (int, float)):
        return units.quantity(value, "bytes")
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _unique(values: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({repr(sorted(v.items(), key=str)): v for v in values}.values())
