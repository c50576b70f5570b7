"""The plan of a comparison: what was asked, resolved to the last setting, and the steps that the budget pays for.

It is written once to `plan.json` and never recomputed, so that the same command finds the same runs however noisy the machine
is. Methods, seeds and trials may be added to it later; another problem, data, budget or baseline is another comparison.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from instar import catalogue, extras, files
from instar.bench import record, tune
from instar.bench.budget import Budget
from instar.cards import ProblemCard
from instar.errors import PlanError, RecordError, ShapeError, UnknownNameError
from instar.interfaces import Data, Problem


@dataclass(frozen=True)
class Request:
    """What the user asked for; the baseline is always among the methods."""

    problem: str
    methods: tuple[str, ...] = ()
    add: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: int = 3
    budget: str = ""
    trials: int = 1
    search: tune.Search = "random"
    tune: tuple[str, ...] = ()
    """Knobs that trials vary; where none is named, all that neither a preset nor the user has set."""
    baseline: str = ""
    least: int = 2
    """Fewest methods. A claim may hold a baseline against itself, which needs one; a comparison needs two."""


@dataclass(frozen=True)
class Entry:
    """One method of the plan with its resolved constructor arguments."""

    address: str
    slug: str
    arguments: dict[str, Any]
    baseline: bool
    added: str | None = None
    source: str | None = None
    """Hash of the file of a method that came by `--add`: another text is another run."""
    fixed: list[str] = field(default_factory=list)
    """Arguments that its preset or the user has set: trials leave them as they are, unless they are named in `Plan.tune`."""


@dataclass(frozen=True)
class Task:
    """One run, complete enough to be executed anywhere."""

    id: str
    kind: str
    spec: dict[str, Any]
    address: str
    setting: str
    baseline: bool
    split: str
    budget: str
    sources: dict[str, Any]
    added: str | None
    command: str
    checkpoint: str
    step_seconds: float


@dataclass
class Plan:
    """See the module's text; `steps` and `calibration` are filled by `instar.bench.compare`."""

    problem: str
    settings: dict[str, Any]
    sources: dict[str, Any]
    data: dict[str, Any]
    budget: str
    seeds: int
    trials: int
    entries: list[Entry]
    calibration: dict[str, dict[str, float]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    search: tune.Search = "random"
    tune: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)
    """Settings of the problem that the user has set, as `Entry.fixed`."""

    @property
    def card(self) -> ProblemCard:
        return catalogue.problem(self.problem)

    @property
    def baseline(self) -> Entry:
        return next(entry for entry in self.entries if entry.baseline)

    def save(self, path: Path) -> None:
        files.write_json(path, {"schema": record.SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan. Raises RecordError for a damaged one."""
        try:
            table = json.loads(path.read_text("utf-8"))
            del table["schema"]
            plan = cls(**{**table, "entries": [Entry(**entry) for entry in table["entries"]]})
            if not isinstance(plan.data["sha256"], str) or sum(entry.baseline for entry in plan.entries) != 1:
                raise KeyError("its data or its baseline")
            return plan
        except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise RecordError(f"{path} is no complete plan ({error}). Delete it, or choose another folder with --out.") from error

    def command(self, **changes: Any) -> str:
        """The `instar compare` line that repeats this comparison."""
        words = ["instar", "compare", self.problem]
        data = self.sources.get("data")
        for file in [data] if isinstance(data, str) else data or []:
            words += ["--data", str(file)]
        words += ["--methods", ",".join(entry.address for entry in self.entries if not entry.added)]
        for entry in self.entries:
            words += ["--add", entry.added] if entry.added else []
        if self.baseline.address != str(catalogue.parse(self.card.baseline[self.card.accepts[0]])):
            words += ["--baseline", self.baseline.address]
        defaults = _parameters(catalogue.load(self.card))
        for key, value in self.settings.items():
            if key in self.fixed or defaults.get(key) != value:
                words += ["--set", f"{key}={json.dumps(value)}"]
        for entry in self.entries:
            known = catalogue.parse(entry.address).arguments
            for key in entry.fixed:  # by the user, where it is not what the preset says
                if key in entry.arguments and (key not in known or known[key] != entry.arguments[key]):
                    words += ["--set", f"{entry.address}.{key}={json.dumps(entry.arguments[key])}"]
        words += ["--seeds", str(changes.get("seeds", self.seeds)), "--budget", str(changes.get("budget", self.budget))]
        words += ["--trials", str(self.trials)] if self.trials > 1 else []
        words += ["--tune", ",".join(self.tune)] if self.trials > 1 and self.tune else []
        return shlex.join(words + (["--search", self.search] if self.trials > 1 and self.search != "random" else []))

    def tasks(self, root: Path, best: dict[str, tuple[int, dict[str, Any]]] | None = None) -> Iterator[Task]:
        """The final runs, interleaved over methods by seed; `best` gives each method its tuned setting."""
        for seed in range(self.seeds):
            for entry in self.entries:
                index, chosen = (best or {}).get(entry.address, (0, {}))
                yield self._task(root, entry, "run", seed, "default" if index == 0 else "tuned", chosen)

    def trial_task(self, root: Path, entry: Entry, index: int, chosen: dict[str, Any]) -> Task:
        """A tuning trial (seed 0, validation split): trial 0 is the default setting."""
        return self._task(root, entry, "trial", 0, f"trial {index}", chosen)

    def _task(self, root: Path, entry: Entry, kind: str, seed: int, setting: str, chosen: dict[str, Any]) -> Task:
        spec = {
            "kind": kind,
            "problem": {"slug": self.problem, "settings": {**self.settings, **chosen.get("problem", {})}},
            "data": self.data["sha256"],
            "method": {
                "slug": entry.slug,
                "arguments": {**entry.arguments, **chosen.get("method", {})},
                "source": entry.source,
            },
            "seed": seed,
            "steps": self.steps[entry.address],
        }
        name = record.identity(spec)
        return Task(
            id=name,
            kind=kind,
            spec=spec,
            address=entry.address,
            setting=setting,
            baseline=entry.baseline,
            split="valid" if kind == "trial" else "test",
            budget=self.budget,
            sources=self.sources,
            added=entry.added,
            command=self.command(),
            checkpoint=str(root / "checkpoints" / name),
            step_seconds=self.calibration[entry.address]["step_seconds"],
        )


def build_problem(slug: str, settings: dict[str, Any]) -> Problem:
    """The problem with those settings. Raises UnknownNameError or ShapeError for settings that do not fit."""
    cls = catalogue.load(catalogue.problem(slug))
    known = _parameters(cls)
    for key in settings:
        if key not in known:
            raise UnknownNameError.among(f"setting of {slug}", key, known)
        wanted, value = type(known[key]), settings[key]
        if wanted in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, wanted))):
            kind = "a whole number" if wanted is int else "a number"
            raise ShapeError(f"The setting {key} of {slug} expects {kind}, such as {known[key]}; received {value!r}.")
    try:
        problem = cls(**settings)
    except TypeError as error:
        raise ShapeError(f"The problem {slug} cannot be made with {settings}: {error}.") from error
    assert isinstance(problem, Problem)
    return problem


def prepare(request: Request, existing: Plan | None = None) -> tuple[Plan, Problem, Data]:
    """Resolve a request against the cards (and the plan that already stands in the folder). Loads the data once.

    Raises UnknownNameError, PlanError, DataError, BudgetError, MissingExtraError.
    """
    card = catalogue.problem(request.problem)
    budget = Budget.parse(request.budget or card.budget)
    if request.seeds < 1 or request.trials < 1:
        raise PlanError(f"A comparison expects at least 1 seed and 1 trial; received {request.seeds} and {request.trials}.")
    if request.search not in get_args(tune.Search):
        raise UnknownNameError.among("search", request.search, get_args(tune.Search))
    if request.search == "tpe" and request.trials > 1:
        extras.require("optuna", "tuning")  # before anything is spent
    settings = {**_parameters(catalogue.load(card)), **request.settings}
    problem = build_problem(request.problem, settings)
    sources = {key: settings.pop(key) for key in ("data",) if key in settings}
    data = problem.load(0)
    plan = Plan(
        problem=request.problem,
        settings=_plain(settings),
        sources=sources,
        data={"sha256": data.sha256, **data.facts},
        budget=budget.text,
        seeds=request.seeds,
        trials=request.trials,
        entries=_entries(request, card),
        search=request.search,
        tune=sorted(request.tune),
        fixed=sorted(settings.keys() & request.settings.keys()),
    )
    knobs = {name for slug in (e.slug for e in plan.entries) for name in catalogue.method(slug).knobs} | set(card.knobs)
    for name in plan.tune:
        if name not in knobs:
            raise UnknownNameError.among("knob of these methods and this problem", name, knobs)
    if existing is not None:
        _extend(plan, existing)
    return plan, problem, data


def steps(plan: Plan, problem: Problem) -> dict[str, int]:
    """The steps of each method from its calibration; those already in the plan stay."""
    budget = Budget.parse(plan.budget)
    return {
        entry.address: plan.steps.get(entry.address)
        or budget.steps(plan.calibration[entry.address]["step_seconds"], problem.tokens_per_step)
        for entry in plan.entries
    }


def warnings(plan: Plan) -> list[str]:
    """What a user should know before spending: too few seeds, or too few data, to show the difference that matters."""
    from instar.bench import statistics

    metric = plan.card.metric(plan.card.primary)
    if plan.seeds < statistics.MINIMUM_SEEDS:
        return [
            f"{plan.seeds} seed(s): no interval and no verdict will be shown (that needs {statistics.MINIMUM_SEEDS} or more)."
        ]
    if metric.item_sd is None or metric.seed_sd is None or "test_items" not in plan.data:
        return []
    found = statistics.detectable(metric.seed_sd, metric.item_sd, plan.seeds, plan.data["test_items"])
    if found <= metric.margin or math.isinf(found):
        return []
    return [
        f"These data can probably not show the difference that matters: with {plan.seeds} seeds and {plan.data['test_items']} "
        f"test items only differences of about {found:.3g} {metric.unit} are seen, and {metric.margin:g} is what counts. "
        "More seeds or more data would help."
    ]


_CHOSEN = {
    "Forecaster": ("context", "season", "batch"),
    "InContextLearner": ("heads", "input_dim", "noise", "prior"),
    # Predictors are built without arguments as well and so have a default for each size.
    "Predictor": ("heads", "input_dim", "width", "vocabulary", "inputs", "outputs", "length", "depth", "size", "patch"),
}
"""Arguments of an interface that are the problem's to choose; of others `heads` and `input_dim`."""


def _entries(request: Request, card: ProblemCard) -> list[Entry]:
    added = {catalogue.add(location).slug: location for location in request.add}
    default = card.baseline[card.accepts[0]]
    baseline = catalogue.parse(request.baseline or default)
    named = [catalogue.parse(one) for one in (str(baseline), *request.methods, *added)]
    entries = []
    for address in {str(one): one for one in named}.values():
        method = address.card
        if method.interface not in card.accepts:
            raise PlanError(f"{card.slug} compares {', '.join(card.accepts)}; {address} is a {method.interface or method.kind}.")
        if card.causal and method.capability("bidirectional"):
            raise PlanError(f"{address} is bidirectional: it would read the later tokens that {card.slug} asks for.")
        cls = catalogue.load(method)
        known = _parameters(cls)
        arguments = {**known, **address.arguments}
        # A preset says a range of its own for what is to be found at its scale.
        fixed = {n for n in address.arguments if n not in method.knobs or address.preset not in method.knobs[n].presets}
        for name, values in request.overrides.items():
            if name in (str(address), address.slug):
                for key in values:
                    if key not in known:
                        raise UnknownNameError.among(f"argument of {address.slug}", key, known)
                arguments.update(values)
                fixed |= values.keys()
        # These are the problem's to choose unless the method was asked for its own.
        for name in _CHOSEN.get(str(method.interface), ("heads", "input_dim")):
            asked = (request.overrides.get(of, {}) for of in (str(address), address.slug))
            if name not in address.arguments and not any(name in values for values in asked):
                arguments.pop(name, None)
        location = added.get(address.slug)
        source = _source(location)
        entries.append(Entry(str(address), address.slug, arguments, address == baseline, location, source, sorted(fixed)))
    if len(entries) < request.least:
        others = ", ".join(slug for slug, c in catalogue.methods().items() if c.interface in card.accepts)
        raise PlanError(f"Only the baseline {baseline} was named: there is nothing to compare. Methods: {others}.")
    for name in request.overrides:
        if name not in {n for e in entries for n in (e.address, e.slug)}:
            raise UnknownNameError.among("method in --set", name, (e.address for e in entries))
    return entries


def _source(location: str | None) -> str | None:
    """The hash of the file of an added method."""
    file = Path(location.rpartition(":")[0]) if location else None
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file is not None and file.is_file() else None


def _extend(plan: Plan, existing: Plan) -> None:
    """Take over what an existing plan has fixed; refuse to mix two comparisons in one folder.

    Arguments that a problem or a method has gained since, at their default, leave a comparison and its runs what they were.
    """
    plan.settings = _known(plan.settings, existing.settings, _plain(_parameters(catalogue.load(plan.card))))
    for key, new, old in (
        ("problem", plan.problem, existing.problem),
        ("settings", plan.settings, existing.settings),
        ("data", plan.data["sha256"], existing.data["sha256"]),
        ("budget", plan.budget, existing.budget),
        ("baseline", plan.baseline.address, existing.baseline.address),
    ):
        if new != old:
            raise PlanError(f"This folder holds another comparison: its {key} is {old}, asked was {new}. Choose another --out.")
    if min(plan.trials, existing.trials) > 1 and (plan.search, plan.tune) != (existing.search, existing.tune):
        old, new = (f"{p.search} search over {', '.join(p.tune) or 'all knobs'}" for p in (existing, plan))
        raise PlanError(f"This folder was tuned by {old}, asked was {new}. Choose another --out.")
    if existing.trials > 1:
        plan.search, plan.tune = existing.search, existing.tune
    plan.calibration = dict(existing.calibration)
    plan.steps = dict(existing.steps)
    plan.seeds = max(plan.seeds, existing.seeds)
    plan.trials = max(plan.trials, existing.trials)
    asked = {entry.address: entry for entry in plan.entries}
    kept = []
    for before in existing.entries:
        source = before.source
        if before.address not in asked and before.added:  # added when the folder was begun
            catalogue.add(before.added)
            before = replace(before, source=_source(before.added))
        if asked.get(before.address, before).source != source:  # another text is another method, with a pace of its own
            plan.calibration.pop(before.address, None)
            plan.steps.pop(before.address, None)
        kept.append(before)
    for before in kept:
        if (entry := asked.get(before.address)) is not None:
            defaults = _parameters(catalogue.load(catalogue.parse(entry.address).card))
            arguments = _known(_plain(entry.arguments), before.arguments, _plain(defaults))
            if arguments != before.arguments:
                old, new = (_beyond(*pair) for pair in ((before.arguments, arguments), (arguments, before.arguments)))
                raise PlanError(
                    f"This folder holds runs of {entry.address} with {old}; asked was {new}. Choose another --out, "
                    "or give the method a preset and compare both."
                )
            asked[entry.address] = replace(entry, arguments=before.arguments)
    plan.entries = [asked.pop(e.address, e) for e in kept] + list(asked.values())


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """As a plan that was read again has them: with lists for tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(arguments))
    return plain


def _beyond(arguments: dict[str, Any], others: dict[str, Any]) -> str:
    """What one setting says that another does not, in words."""
    words = [f"{key}={value!r}" for key, value in arguments.items() if key not in others or others[key] != value]
    return ", ".join(words) or "its defaults"


def _known(asked: dict[str, Any], before: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`before`, if `asked` says no more than it and defaults of arguments that it lacks."""
    same = {key: value for key, value in asked.items() if key in before or key not in defaults or value != defaults[key]}
    return before if same == before else asked


def _parameters(cls: type) -> dict[str, Any]:
    """Constructor arguments that have a default, with it."""
    found: Sequence[inspect.Parameter] = list(inspect.signature(cls).parameters.values())
    return {p.name: p.default for p in found if p.default is not inspect.Parameter.empty}
