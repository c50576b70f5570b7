"""What the gate and other rules say of the same changes: how often each fails or passes them.

python benchmarks/gate_peers.py     (about a minute; `pip install signaltest` for that peer)

Peers, each with its own defaults where it has some:
- a fixed limit of 2 % on the negative flips that were seen;
- a drop of accuracy that McNemar's exact test calls significant at 5 % (the rule of several evaluation tools, some of which add
  effect sizes and power analysis; it tests the accuracy, not the flips);
- signaltest 0.7 (paired comparison of scores): significant at 5 % and larger than its least effect; one run a case here, though
  it is made for several.
The gate alone is given the second run of the old version; the others have no use for it.
Every trial draws N items, each right with a probability of its own, and two runs of the old version and one of the new.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from instar.bench import environment
from instar.gate import intervals
from instar.gate.flips import excess, flips

RESULT = Path(__file__).parent / "results" / "gate_peers.json"
N, TRIALS, BUDGET, SEED = 3000, 300, 0.02, 3
Marks = np.ndarray
Rule = Callable[[Marks, Marks, Marks], str]


def limit(old: Marks, again: Marks, new: Marks) -> str:
    return "fail" if (old > new).mean() > BUDGET else "pass"


def mcnemar(old: Marks, again: Marks, new: Marks) -> str:
    lost, won = int((old > new).sum()), int((old < new).sum())
    return "fail" if lost > won and float(intervals.mcnemar(lost, won)) < 0.05 else "pass"


def signaltest(old: Marks, again: Marks, new: Marks) -> str:
    """Its paired comparison, by its own functions; its bootstrap interval is left out, which decides nothing and takes 4 s."""
    from signaltest.compare import DEFAULT_MIN_EFFECT
    from signaltest.stats.gate import decide_gate
    from signaltest.stats.significance import paired_significance

    least, effect = DEFAULT_MIN_EFFECT["numeric"], float((new - old).mean())
    told = decide_gate(paired_significance(old, new), effect, min_effect=least, n_valid=len(old))
    return {"inconclusive": "undecided"}.get(told.status, told.status)


def gate(old: Marks, again: Marks, new: Marks) -> str:
    figure = excess(flips(np.stack([old, again]), new).excess, None, True, 0.95).figure
    assert figure.low is not None
    assert figure.high is not None
    return "fail" if figure.low > BUDGET else "pass" if figure.high < BUDGET else "undecided"


RULES: dict[str, Rule] = {
    "limit on seen flips": limit,
    "McNemar on accuracy": mcnemar,
    "signaltest": signaltest,
    "instar gate": gate,
}


def scenarios(generator: np.random.Generator) -> dict[str, tuple[Marks, Marks, Marks]]:
    certain = (generator.random(N) < 0.85).astype(float)
    noisy = generator.beta(4.0, 1.0, N)

    def run(p: Marks) -> Marks:
        return (generator.random(N) < p).astype(float)

    broken = certain.copy()
    broken[generator.random(N) < 0.045 / 0.85] = 0.0
    swapped = broken.copy()
    swapped[(certain == 0) & (generator.random(N) < 0.045 / 0.15)] = 1.0
    hurt = noisy.copy()
    hurt[generator.random(N) < 0.08] = 0.0
    return {
        "nothing changed, no noise (should pass)": (certain, certain, certain),
        "nothing changed, noisy answers (must not fail)": (run(noisy), run(noisy), run(noisy)),
        "4.5 % broken, as many repaired (should fail)": (certain, certain, swapped),
        "4.5 % broken, none repaired (should fail)": (certain, certain, broken),
        "8 % broken behind noisy answers (should fail)": (run(noisy), run(noisy), run(hurt)),
    }


def main() -> None:
    rules = dict(RULES)
    try:
        version = importlib.metadata.version("signaltest")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
        del rules["signaltest"]
        print("signaltest is left out: it is not installed.")
    generator = np.random.default_rng(SEED)
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for _ in range(TRIALS):
        for scenario, runs in scenarios(generator).items():
            for name, rule in rules.items():
                told = counts.setdefault(scenario, {}).setdefault(name, {"fail": 0, "pass": 0, "undecided": 0})
                told[rule(*runs)] += 1
    for scenario, found in counts.items():
        print(scenario)
        for name, told in found.items():
            print(f"  {name:<22}" + "  ".join(f"{k} {v / TRIALS:6.1%}" for k, v in told.items()))
    facts = {"items": N, "trials": TRIALS, "budget": BUDGET, "seed": SEED, "signaltest": version, "counts": counts}
    RESULT.write_text(json.dumps({**facts, "environment": environment.describe()}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
