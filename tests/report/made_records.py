"""Records as the engine writes them, made by formulas: methods whose differences are known."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from instar import catalogue
from instar.bench import record
from instar.bench.record import Store
from instar.bench.summary import Group, summarise
from instar.cards import Card, Knob, Metric, Paper, ProblemCard

LENGTHS = (256, 512, 1024, 2048, 4096)
HOSTILE = "<script>alert(1)</script>\"'&$\\x$"
METRICS = [
    *(
        Metric(f"bits_per_byte@{c}", f"Bits per byte at {c}", "bits", "lower", "quality", 0.02, over="evaluation length")
        for c in ("T", "2T", "4T")
    ),
    Metric("accuracy", "next-byte accuracy", "fraction", "higher", "quality", 0.01),
    Metric("parameters", "Parameters", "", "lower", "cost"),
    *(
        Metric(f"state_bytes@{n}", f"State after {n} tokens", "bytes", "lower", "cost", over="context length")
        for n in LENGTHS
    ),
    Metric("train_tokens_per_second", "Training speed", "tokens/s", "higher", "time", 0.05),
    *(
        Metric(f"prefill_seconds@{n}", f"Prefill of {n} tokens", "s", "lower", "time", 0.05, over="context length")
        for n in LENGTHS
    ),
]  # fmt: skip
EFFECTS = {"softmax": 0.0, "better": -0.12, "worse": 0.15, "equal": 0.002, "gla": -0.03}


def problem(**changes: Any) -> ProblemCard:
    given: dict[str, Any] = {
        "slug": "prose",
        "title": "Language modelling of bytes",
        "idea": "Predict the next byte.",
        "entry": "nowhere:Prose",
        "accepts": ["Mixer"],
        "baseline": {"Mixer": "softmax"},
        "primary": "bits_per_byte@T",
        "budget": "60steps",
        "domains": ["text"],
        "tasks": ["language modelling"],
        "metrics": METRICS,
        "path": Path("prose.toml"),
        "caution": "Quality rankings of small from-scratch models do not transfer.",
        "knobs": {"rate": Knob(range=[1e-4, 1e-2], scale="log")},
    }
    return ProblemCard(**{**given, **changes})


def method(slug: str) -> Card:
    paper = Paper(f"On {slug}", "2024-01-01", ["A. Author"], f"@article{{{slug}, title = {{On {slug} </script>}}}}", "2401.00001")
    return Card(
        slug=slug,
        family="mixers",
        title=f"The {slug} mixer",
        idea="It mixes.",
        when_not="Never mind.",
        kind="system",
        domains=[],
        tasks=[],
        path=Path(f"{slug}.toml"),
        paper=paper,
        deviations=["No dropout <img src=x onerror=alert(2)>."],
    )


def shelve(patch: pytest.MonkeyPatch) -> dict[str, ProblemCard]:
    """A catalogue of one problem and some methods; a test may change the problem's card."""
    problems = {"prose": problem()}
    known = {slug: method(slug) for slug in ("softmax", "gla", "aaren", "better", "worse", "equal")}
    patch.setattr(catalogue, "problems", lambda: problems)
    patch.setattr(catalogue, "methods", lambda: known)
    return problems


def run(
    address: str, seed: int, effect: float = 0.0, *, noise: float = 0.004, kind: str = "run", **changes: Any
) -> dict[str, Any]:
    """One training run. Its items share their difficulty over methods, its seed a part of its luck."""
    chance = random.Random(f"{address}/{seed}/{kind}")
    blocks = random.Random("blocks")
    hard = [blocks.gauss(2.3, 0.25) for _ in range(40)]
    luck = random.Random(seed).gauss(0, 0.02) + chance.gauss(0, noise)

    def bits(extra: float) -> dict[str, Any]:
        totals = [512 * (h + effect + luck + extra + chance.gauss(0, 0.004)) for h in hard]
        return {"value": sum(totals) / (512 * len(hard)), "totals": totals, "weights": [512.0] * len(hard)}

    grows = 0.3 if address == "softmax" else 0.01
    metrics = {f"bits_per_byte@{c}": bits(grows * i) for i, c in enumerate(("T", "2T", "4T"))}
    right = [float(round(300 - 40 * (h + effect - 2.3))) for h in hard]
    metrics["accuracy"] = {"value": sum(right) / (512 * len(hard)), "totals": right, "weights": [512.0] * len(hard)}
    slug = address.partition(":")[0]
    spec = {
        "kind": kind,
        "problem": {"slug": "prose", "settings": {"length": 256, **changes.pop("settings", {})}},
        "data": "ab" * 32,
        "method": {"slug": slug, "arguments": {"heads": 4}, "source": None},
        "seed": seed,
        "steps": 60,
    }
    curve = [[s, 5.5 * (1 + s) ** -0.2 + effect + luck + chance.gauss(0, 0.02), 0.1 * s] for s in range(1, 61)]
    result = {
        "schema": record.SCHEMA,
        "id": record.identity({**spec, "address": address, **{k: str(v) for k, v in changes.items()}}),
        "kind": kind,
        "status": "ok",
        "reason": None,
        "spec": spec,
        "address": address,
        "setting": "default",
        "baseline": address == "softmax",
        "budget": "60steps",
        "split": "test",
        "card": None,
        "sources": {"data": "prose.txt"},
        "command": "instar compare prose --data prose.txt --methods softmax,gla --seeds 5 --budget 60steps",
        "data": {"sha256": "ab" * 32, "name": "prose.txt", "bytes": 1_115_394, "test_items": 40},
        "curve": curve,
        "train_tokens": 491520,
        "metrics": metrics,
        "costs": {"parameters": 212_480.0, **{f"state_bytes@{n}": _state(slug, n) for n in LENGTHS}},
        "resources": {"wall_seconds": 12.0, "cpu_seconds": 11.4, "peak_rss_bytes": 3e8, "threads": 1, "load_before": 1.2,
                      "load_after": 1.4},
        "environment": {"cpu": "A <fast> CPU", "cores": 2, "memory_bytes": 8 * 2**30, "python": "3.12.1", "torch": "2.13.0"},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:00:12+00:00",
    }  # fmt: skip
    return {**result, **changes}


def _state(slug: str, length: int) -> float:
    return 1024.0 * length if slug == "softmax" else 4096.0 if slug == "aaren" else 65536.0


def failed(address: str, seed: int, reason: str) -> dict[str, Any]:
    found = run(address, seed, status="diverged", reason=reason)
    for key in ("metrics", "costs", "curve", "data", "resources", "train_tokens"):
        del found[key]
    return found


def timing(addresses: list[str], busy: bool = False) -> dict[str, Any]:
    """A timing pass: the baseline grows with the square of the length, the others linearly; they cross near 700."""
    chance = random.Random(7)
    times: dict[str, Any] = {}
    for address in addresses:
        entries = {}
        for name, seconds in [
            ("train_tokens_per_second", 1 / 41_000 if address == "softmax" else 1 / 36_000),
            *((f"prefill_seconds@{n}", 2e-9 * n * n + 6e-6 * n if address == "softmax" else 7.4e-6 * n) for n in LENGTHS),
        ]:
            rounds = [seconds * (1 + abs(chance.gauss(0, 0.02))) for _ in range(7)]
            entries[name] = {"minimum": min(rounds), "median": sorted(rounds)[3], "rounds": rounds,
                             "cpu_over_wall": 0.5 if busy else 0.99, "calls": 3, "load": 1.0}  # fmt: skip
        times[address] = entries
    spec = {"kind": "timing", "problem": {"slug": "prose", "settings": {"length": 256}}, "methods": addresses, "busy": busy}
    return {
        "schema": record.SCHEMA, "id": record.identity(spec), "kind": "timing", "status": "ok", "reason": None, "spec": spec,
        "address": ",".join(addresses), "times": times, "resources": {"threads": 1, "load_before": 0.3, "load_after": 0.9},
        "environment": {"cpu": "A <fast> CPU", "cores": 2}, "command": "instar compare prose",
    }  # fmt: skip


def trials(address: str, count: int = 6) -> list[dict[str, Any]]:
    rates = [1e-3, 3e-3, 9.9e-3, 2e-4, 6e-4, 5e-3]
    return [
        run(address, 0, 0.05 * abs(i - 2) - 0.1, kind="trial", setting=f"trial {i}", settings={"rate": rates[i]}, split="valid")
        for i in range(count)
    ]


def full() -> list[dict[str, Any]]:
    """Everything at once: several methods, failures, hostile names, a busy timing pass, trials."""
    addresses = ["softmax", "gla", "aaren", "gla:no_gate", "worse"]
    effects = {"softmax": 0.0, "gla": -0.06, "aaren": 0.007, "gla:no_gate": 0.01, "worse": 0.15}
    noise = {"aaren": 0.03, "gla:no_gate": 0.002}
    records = [run(a, s, effects[a], noise=noise.get(a, 0.004)) for a in addresses for s in range(5)]
    records += [failed(HOSTILE, s, f"loss is nan at step 12 {HOSTILE}") for s in range(2)]
    records += [failed("worse", 5, "killed </pre><img src=x onerror=alert(3)>")]
    records += [timing([*addresses, HOSTILE])]
    return records + trials("softmax") + trials("gla")


def store(root: Path, records: list[dict[str, Any]]) -> Path:
    folder = Store(root)
    for item in records:
        folder.put(item)
    return root


def group_of(records: list[dict[str, Any]]) -> Group:
    groups = summarise(records)
    assert len(groups) == 1
    return groups[0]
