"""A problem with its methods as a benchmark of benchopt: a folder of short wrappers, which run Instar's own code.

benchopt's format: `objective.py`, `datasets/*.py` and `solvers/*.py` with the classes Objective, Dataset and Solver, and code
that they share in `benchmark_utils` (benchopt/template_benchmark). A solver trains a method once; its scores are those of the
test split, and `value`, which benchopt minimises, is the problem's first metric, negated where more is better.
"""

from __future__ import annotations

import pprint
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from instar import catalogue, files
from instar.bench.budget import Budget
from instar.bench.plan import build_problem
from instar.cards import ProblemCard
from instar.errors import OutputError, PlanError

_DEFAULT_STEPS = 200
_HEAD = "# Written by `instar export problem $slug`. Needs: pip install benchopt instar\n"
_FILES = {
    "objective.py": '''
from benchopt import BaseObjective

from benchmark_utils import untrained, value


class Objective(BaseObjective):
    name = $title
    requirements = ["pip::instar"]
    min_benchopt_version = "1.7"

    def set_data(self, problem, data, seed):
        self.problem, self.data, self.seed = problem, data, seed

    def get_objective(self):
        return dict(problem=self.problem, data=self.data, seed=self.seed)

    def evaluate_result(self, scores):
        return dict(value=value(scores), **scores)

    def get_one_result(self):
        return dict(scores=untrained(self.problem, self.data, self.seed))
''',
    "datasets/$slug.py": '''
from benchopt import BaseDataset

from benchmark_utils import opened


class Dataset(BaseDataset):
    name = "$slug"
    parameters = {"seed": $seeds}
    requirements = ["pip::instar"]

    def get_data(self):
        problem = opened()
        return dict(problem=problem, data=problem.load(self.seed), seed=self.seed)
''',
    "benchmark_utils/__init__.py": '''
from instar import catalogue
from instar.bench.plan import build_problem
from instar.bench.run import lift

PROBLEM = "$slug"
SETTINGS = $settings
METRIC, SIGN = "$metric", $sign


def opened():
    return build_problem(PROBLEM, SETTINGS)


def train(address, problem, data, seed, steps):
    method = catalogue.parse(address)
    subject = lift(problem, method.slug, method.arguments, data, seed)
    if steps:
        problem.fit(subject, data.train, steps=steps, seed=seed)
    return subject


def scores(problem, data, subject):
    return {name: items.value for name, items in problem.evaluate(subject, data.test).items()}


def untrained(problem, data, seed):
    return scores(problem, data, train("$baseline", problem, data, seed, 0))


def value(scores):
    return SIGN * scores[METRIC]
''',
    "README.md": '''
# $heading

$idea

```sh
benchopt run .
```

One solver a method, each trained once for $steps steps. benchopt's time is wall time in one process; what `instar compare $slug`
measures beside it (memory of each run, deterministic costs, intervals, a timing pass alone on the machine) is not in this format.
''',
}  # fmt: skip
_SOLVER = """
from benchopt import BaseSolver

from benchmark_utils import scores, train


class Solver(BaseSolver):
    name = "$address"
    parameters = {"steps": [$steps]}
    requirements = [$needs]
    sampling_strategy = "run_once"

    def set_objective(self, problem, data, seed):
        self.problem, self.data, self.seed = problem, data, seed

    def run(self, _):
        self.subject = train(self.name, self.problem, self.data, self.seed, self.steps)

    def get_result(self):
        return dict(scores=scores(self.problem, self.data, self.subject))
"""


def write(
    problem: str,
    folder: Path,
    *,
    methods: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    budget: str = "",
    seeds: int = 3,
) -> list[Path]:
    """Write the benchmark of a problem into an empty or new folder; the files written.

    methods: addresses; all whose interface the problem accepts when there are none, and the baseline always. budget: in steps
    (200steps). settings: of the problem. Raises UnknownNameError, PlanError, ShapeError (seeds), OutputError.
    """
    card = catalogue.problem(problem)
    steps = _steps(budget)
    if seeds < 1:
        raise PlanError(f"--seeds expects at least 1, received {seeds}.")
    addresses = _addresses(card, methods)
    build_problem(card.slug, dict(settings or {}))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is no empty folder. Choose another, so that nothing of yours is overwritten.")
    metric = card.metric(card.primary)
    common: dict[str, Any] = {
        "slug": card.slug,
        "title": repr(card.title),
        "heading": " ".join(card.title.split()),
        "idea": " ".join(card.idea.split()),
        "settings": pprint.pformat(dict(settings or {}), sort_dicts=True),
        "metric": metric.id,
        "sign": 1 if metric.direction == "lower" else -1,
        "baseline": next(iter(card.baseline.values())),
        "steps": steps,
        "seeds": list(range(seeds)),
    }
    texts = {Template(name).substitute(common): Template(text).substitute(common) for name, text in _FILES.items()}
    for address in addresses:
        extras = ["instar", *(f"instar[{need}]" for need in catalogue.parse(address).card.needs)][-1:]
        needs = ", ".join(f'"pip::{name}"' for name in extras)
        name = re.sub(r"[^A-Za-z0-9]+", "_", address)
        texts[f"solvers/{name}.py"] = Template(_SOLVER).substitute(common, address=address, needs=needs)
    head = Template(_HEAD).substitute(common)
    written = []
    for name, text in sorted(texts.items()):
        path = folder / name
        files.folder(path.parent)
        files.write(path, text.lstrip("\n") if name.endswith(".md") else head + text.lstrip("\n"))
        written.append(path)
    return written


def _addresses(card: ProblemCard, methods: Sequence[str]) -> list[str]:
    """The methods to wrap, the baselines first."""
    fitting = [slug for slug, method in catalogue.methods().items() if method.interface in card.accepts]
    if card.causal:
        fitting = [slug for slug in fitting if not catalogue.method(slug).capability("bidirectional")]
    found = [str(catalogue.parse(address)) for address in methods]
    for address in found:
        if catalogue.parse(address).slug not in fitting:
            wanted = " or ".join(card.accepts)
            raise PlanError(f"{address} cannot be compared on {card.slug}, which takes {wanted}; see: instar list.")
    return list(dict.fromkeys([*card.baseline.values(), *(found or fitting)]))


def _steps(budget: str) -> int:
    if not budget:
        return _DEFAULT_STEPS
    asked = Budget.parse(budget)
    if asked.kind != "steps":
        raise PlanError(f"A benchmark of benchopt is written for a budget in steps, such as 500steps; received '{budget}'.")
    return int(asked.amount)
