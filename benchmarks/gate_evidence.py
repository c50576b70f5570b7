"""Whether the gate's statistics hold: false alarms of A/A comparisons, planted faults, coverage of intervals, a million rows.

python benchmarks/gate_evidence.py simulated   (about 10 minutes)   every answer drawn; `judge` itself, and its intervals
python benchmarks/gate_evidence.py real        (about 8 minutes)    MiniLM on CLINC150: runs that differ in seed, batch, threads
python benchmarks/gate_evidence.py million     (about 1 minute)     `instar gate` on two files of 1,000,000 rows

The comparisons of `real` share few runs (9 and 8), so they are not independent trials and their intervals are too narrow.

Each writes `results/gate_KIND.json` with its settings, seeds, figures and machine. A share of trials is given with its own
exact 95 % interval, so that chance in the evidence is seen as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from instar.bench import environment
from instar.gate import intervals
from instar.gate.flips import difference, excess, flips, mean, share
from instar.gate.judge import judge
from instar.gate.plan import plan
from instar.gate.policy import Policy
from instar.gate.predictions import Predictions

RESULTS = Path(__file__).parent / "results"
BUDGET, DETECT = 0.02, 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["simulated", "real", "million"])
    kind = parser.parse_args().kind
    started = time.perf_counter()
    rows = {"simulated": simulated, "real": real, "million": million}[kind]()
    record = {
        "kind": kind,
        "command": f"python benchmarks/gate_evidence.py {kind}",
        "budget": BUDGET,
        "detect": DETECT,
        "level": 0.95,
        "rows": rows,
        "environment": environment.describe(),
        "load": environment.load(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    (RESULTS / f"gate_{kind}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def row(what: str, hits: int, trials: int, wanted: str, **settings: Any) -> dict[str, Any]:
    """One line of evidence: a share of trials with its interval."""
    low, high = intervals.share_interval(hits, trials)
    found = {
        "what": what,
        **settings,
        "share": hits / trials,
        "interval": [float(low), float(high)],
        "trials": trials,
        "wanted": wanted,
    }
    print(
        f"{what:<52} {hits / trials:7.4f}  [{float(low):.4f}, {float(high):.4f}]  of {trials}  ({wanted})  {settings}", flush=True
    )
    return found


# Simulated: N items, each right with a probability of its own, drawn anew in each run.


def predictions(name: str, right: np.ndarray) -> Predictions:
    return Predictions(
        name, [str(i) for i in range(len(right))], ["right" if r else "wrong" for r in right], ["right"] * len(right)
    )


def simulated() -> list[dict[str, Any]]:
    return [*judged(), *planted(), *coverage()]


def abilities(generator: np.random.Generator, n: int, noise: str) -> np.ndarray:
    """The probability of each item to be right: all certain, or a beta distribution with much or little in between."""
    if noise == "none":
        return (generator.random(n) < 0.9).astype(float)
    a, b = {"little": (0.9, 0.1), "much": (4.0, 1.0)}[noise]
    return generator.beta(a, b, n)


def judged() -> list[dict[str, Any]]:
    """A/A: the same version three times. `fail` is a false alarm; the floor must take the noise away."""
    rows = []
    for noise in ("none", "little", "much"):
        for n in (300, 2000):
            generator = np.random.default_rng(n)
            false = blamed = 0
            trials = 400
            for _ in range(trials):
                p = abilities(generator, n, noise)
                old, again, new = (predictions(k, generator.random(n) < p) for k in ("old", "again", "new"))
                false += judge(old, new, again=[again], policy=Policy(max_nfr=BUDGET)).decision == "fail"
                blamed += judge(old, new, policy=Policy(max_nfr=BUDGET)).decision == "fail"
            rows.append(row("A/A, false alarms with a floor", false, trials, "≤ 0.05", noise=noise, items=n, seed=n))
            rows.append(
                row("A/A, what would fail without a floor", blamed, trials, "for comparison", noise=noise, items=n, seed=n)
            )
    return rows


def planted() -> list[dict[str, Any]]:
    """An excess of budget + 2 points at the N that `plan` asks for; and an excess of exactly the budget, the hardest A/A."""
    rows = []
    for noise in ("none", "little", "much"):
        generator = np.random.default_rng(11)
        p = abilities(generator, 400_000, noise)
        floor = float((p * (1 - p)).mean())
        n = plan(max_nfr=BUDGET, detect=DETECT, power=0.9, floor=floor if noise != "none" else 0.0).items
        for what, extra, wanted in (
            ("planted budget + 2 points, found", BUDGET + DETECT, "≥ 0.90"),
            ("excess at the budget, false alarms", BUDGET, "≤ 0.05"),
        ):
            found = 0
            trials = 1000
            for _ in range(trials):
                p = abilities(generator, n, noise)
                # Items that were right with probability p become wrong for good: the excess grows by E[p²] an item.
                hit = generator.random(n) < extra / float((p * p).mean())
                runs = (generator.random((3, n)) < p).astype(float)
                runs[2, hit] = 0.0
                seen = flips(runs[:2] if noise != "none" else runs[:1], runs[2])
                tested = excess(seen.excess, None, noise != "none", 0.95)
                found += tested.figure.low is not None and tested.figure.low > BUDGET
            rows.append(row(what, found, trials, wanted, noise=noise, floor=round(floor, 4), items=n, seed=11))
    return rows


def covered(draw: Callable[[np.random.Generator], tuple[Any, float]], trials: int, seed: int) -> int:
    generator = np.random.default_rng(seed)
    hits = 0
    for _ in range(trials):
        figure, truth = draw(generator)
        hits += figure.low <= truth <= figure.high
    return hits


def coverage() -> list[dict[str, Any]]:
    """How often 95 % intervals hold the truth: shares, paired differences, excess over a floor, blocks, means of scores."""

    def nfr(n: int, rate: float) -> Callable:
        return lambda g: (share(g.random(n) < rate, None, 0.95), rate)

    def change(n: int, lost: float, won: float) -> Callable:
        def draw(g: np.random.Generator) -> tuple[Any, float]:
            u = g.random(n)
            return difference(np.where(u < lost, -1.0, np.where(u < lost + won, 1.0, 0.0)), None, 0.95), won - lost

        return draw

    def beyond(n: int, runs: int, noise: str, hit: float) -> Callable:
        big = abilities(np.random.default_rng(0), 2_000_000, noise)
        truth = hit * float((big * big).mean())

        def draw(g: np.random.Generator) -> tuple[Any, float]:
            p = abilities(g, n, noise)
            marks = (g.random((runs + 1, n)) < p).astype(float)
            marks[-1, g.random(n) < hit] = 0.0
            return excess(flips(marks[:-1], marks[-1]).excess, None, True, 0.95).figure, truth

        return draw

    def blocked(blocks: int, size: int, paired: bool) -> Callable:
        codes = np.repeat(np.arange(blocks), size)

        def draw(g: np.random.Generator) -> tuple[Any, float]:
            rate = np.repeat(g.beta(1.0, 19.0, blocks), size)  # mean 0.05, documents differ
            lost = g.random(blocks * size) < rate
            if not paired:
                return share(lost, codes, 0.95), 0.05
            won = ~lost & (g.random(blocks * size) < 0.03)
            return difference(won.astype(float) - lost, codes, 0.95), 0.03 * 0.95 - 0.05

        return draw

    def scores(n: int, shape: str, blocks: int = 0) -> Callable:
        def draw(g: np.random.Generator) -> tuple[Any, float]:
            if shape == "skewed":
                return mean(g.exponential(1.0, n) * 0.1 - 0.12, None, 0.95), -0.02
            if shape == "mostly zero":
                return mean(np.where(g.random(n) < 0.2, g.normal(-0.1, 0.3, n), 0.0), None, 0.95), -0.02
            codes = np.repeat(np.arange(blocks), n // blocks)
            return mean(g.normal(0, 0.2, n) + np.repeat(g.normal(-0.02, 0.1, blocks), n // blocks), codes, 0.95), -0.02

        return draw

    def told(names: str, *values: Any) -> dict[str, Any]:
        return dict(zip(names.split(", "), values, strict=True))

    made: list[tuple[str, Callable, int, dict[str, Any]]] = []
    for n, rate in ((400, 0.03), (1000, 0.02), (2000, 0.05), (2000, 0.2)):
        made.append(("covers: NFR", nfr(n, rate), 4000, told("items, rate", n, rate)))
    for n, lost, won in ((300, 0.05, 0.08), (1000, 0.02, 0.03), (2000, 0.1, 0.1)):
        made.append(("covers: change of accuracy", change(n, lost, won), 4000, told("items, lost, won", n, lost, won)))
    for n, k, noise, hit in (
        (1000, 2, "much", 0.0),
        (1000, 3, "much", 0.04),
        (2000, 2, "little", 0.03),
        (2000, 4, "little", 0.03),
    ):
        settings = told("items, old runs, noise, planted", n, k, noise, hit)
        made.append(("covers: excess over the floor", beyond(n, k, noise, hit), 2000, settings))
    for count, size in ((60, 10), (200, 5), (150, 20)):
        settings = told("blocks, items of a block", count, size)
        made.append(("covers: NFR in blocks", blocked(count, size, False), 2000, settings))
        made.append(("covers: change of accuracy in blocks", blocked(count, size, True), 2000, settings))
    for n, shape in ((150, "skewed"), (600, "skewed"), (400, "mostly zero")):
        made.append(("covers: mean change of scores", scores(n, shape), 1000, told("items, scores", n, shape)))
    made.append(("covers: mean change of scores in blocks", scores(600, "blocks", 60), 1000, told("items, blocks", 600, 60)))
    return [row(what, covered(draw, trials, 21), trials, "0.93 … 0.97", **known, seed=21) for what, draw, trials, known in made]


# Real: MiniLM on CLINC150.


def real() -> list[dict[str, Any]]:
    """Versions of one recipe that differ by chance: examples drawn with other seeds; int8 at other batch sizes and threads."""
    from instar.data.intents import clinc150_cases
    from instar.doors.hf import TransformersModel

    rows, policy = [], Policy(max_nfr=BUDGET)
    runs = [
        TransformersModel("all-MiniLM-L6-v2", {"threads": 1}).run(clinc150_cases(examples_per_class=10, seed=s), "classification")
        for s in range(9)
    ]
    triples = [(a, b, c) for a in range(9) for b in range(9) for c in range(9) if len({a, b, c}) == 3]
    chosen = [triples[i] for i in np.random.default_rng(0).choice(len(triples), 60, replace=False)]
    decisions = [
        (judge(runs[a], runs[c], again=[runs[b]], policy=policy), judge(runs[a], runs[c], policy=policy)) for a, b, c in chosen
    ]
    told = {"items": len(runs[0]), "mean floor": float(np.mean([d.floor.value for d, _ in decisions if d.floor]))}
    what = "examples of each class drawn anew"
    rows.append(row(f"real A/A ({what}), false alarms", sum(d.decision == "fail" for d, _ in decisions), 60, "≤ 0.05", **told))
    rows.append(
        row(f"real A/A ({what}), fails without a floor", sum(d.decision == "fail" for _, d in decisions), 60, "for comparison")
    )
    cases = clinc150_cases(per_class=10)
    settings = [{"batch": b, "threads": t} for b, t in ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 2), (64, 2), (128, 2))]
    int8 = [TransformersModel("all-MiniLM-L6-v2", {"quantize": "int8", **s}).run(cases, "classification") for s in settings]
    triples = [(a, b, c) for a in range(8) for b in range(8) for c in range(8) if len({a, b, c}) == 3]
    chosen = [triples[i] for i in np.random.default_rng(1).choice(len(triples), 40, replace=False)]
    found = [judge(int8[a], int8[c], again=[int8[b]], policy=policy) for a, b, c in chosen]
    told = {"items": len(int8[0]), "mean floor": float(np.mean([d.floor.value for d in found if d.floor]))}
    rows.append(
        row("real A/A (int8 at other batch sizes), false alarms", sum(d.decision == "fail" for d in found), 40, "≤ 0.05", **told)
    )
    rows += _planted_in_real(runs, float(np.mean([d.floor.value for d, _ in decisions if d.floor])))
    return rows


def _planted_in_real(runs: list[Predictions], floor: float) -> list[dict[str, Any]]:
    """Right answers of a real run made wrong: budget + 2 points, in samples of as many items as the plan asks for."""
    items = plan(max_nfr=BUDGET, detect=DETECT, power=0.9, floor=floor).items
    generator = np.random.default_rng(5)
    found = alarms = trials = 0
    if items > len(runs[0]):
        return []
    for _ in range(300):
        a, b, c = (runs[i] for i in generator.permutation(len(runs))[:3])
        chosen = generator.choice(len(a), items, replace=False)
        marks = np.array([[x == y for x, y in zip(v.outputs, v.labels or [], strict=True)] for v in (a, b, c)], dtype=float)[
            :, chosen
        ]
        both = float((marks[:2].mean(0) * marks[2]).mean())
        broken = marks[2].copy()
        broken[generator.random(items) < (BUDGET + DETECT) / both] = 0.0
        for new, planted_ in ((broken, True), (marks[2], False)):
            low = excess(flips(marks[:2], new).excess, None, True, 0.95).figure.low
            failed = low is not None and low > BUDGET
            found, alarms = found + (failed and planted_), alarms + (failed and not planted_)
        trials += 1
    told = {"items": items, "floor": round(floor, 4), "seed": 5}
    return [
        row("real answers, planted budget + 2 points, found", found, trials, "≥ 0.90", **told),
        row("real answers, nothing planted, false alarms", alarms, trials, "≤ 0.05", **told),
    ]


def million() -> list[dict[str, Any]]:
    """Two JSONL files of a million rows, judged by the command line in a process of its own, with page and record."""
    generator = np.random.default_rng(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        labels = generator.integers(0, 150, 1_000_000)
        for name in ("old", "new"):
            said = np.where(generator.random(1_000_000) < 0.1, generator.integers(0, 150, 1_000_000), labels)
            with (Path(folder) / f"{name}.jsonl").open("w") as stream:
                for i, (o, label) in enumerate(zip(said.tolist(), labels.tolist(), strict=True)):
                    item = {
                        "id": f"item-{i}",
                        "output": f"intent_{o}",
                        "label": f"intent_{label}",
                        "domain": f"d{i % 10}",
                        "length": i % 97,
                    }
                    stream.write(json.dumps({**item, "input": f"please do the thing number {i} for me now"}) + "\n")
        for _ in range(3):
            command = [
                sys.executable,
                "-m",
                "instar",
                "gate",
                "old.jsonl",
                "new.jsonl",
                "--html",
                "p.html",
                "--json",
                "r.json",
                "-q",
            ]
            start = time.perf_counter()
            process = subprocess.Popen(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})
            _, status, usage = os.wait4(process.pid, 0)
            wall, code = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
            found = {
                "what": "1,000,000 rows",
                "wall_seconds": round(wall, 2),
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
            }
            found |= {"peak_bytes": usage.ru_maxrss * 1024, "exit_code": code, "load": environment.load(), "wanted": "< 30 s"}
            size = sum((Path(folder) / f"{n}.jsonl").stat().st_size for n in ("old", "new"))
            print(found, f"{size / 2**20:.0f} MiB of input", flush=True)
            rows.append({**found, "input_bytes": size})
    return rows


if __name__ == "__main__":
    main()
