"""Cards: what is known of a method or a problem without importing it. Strict TOML beside the class (`gla.py` + `gla.toml`).

The dataclasses below are the schema: a key that is no field, a missing key or a wrong type is a CardError that names the file,
the key and what was expected. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import tomllib
import types
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from instar import formula
from instar.errors import CardError, FormulaError, UnknownNameError

Kind = Literal["system", "baseline", "study", "dataset", "survey"]
Interface = Literal[
    "Mixer",
    "CompatibleHead",
    "Adapter",
    "Editor",
    "Transform",
    "Updater",
    "Optimizer",
    "InContextLearner",
    "AttentionHead",
    "Pooling",
    "Growth",
    "Forecaster",
    "Labeller",
    "Predictor",
]
Direction = Literal["lower", "higher"]
ClaimKind = Literal["compare", "parity", "ratio", "slope", "threshold", "exact", "untestable"]

CAPABILITIES: dict[str, type | tuple[str, ...]] = {
    "causal": bool,
    "streaming": bool,
    "bidirectional": bool,
    "stochastic": bool,
    "surrogate_grad": bool,
    "batch_statistics": bool,
    "whole_network": bool,
    "chunk_is_semantics": bool,
    "lookahead": int,
    "max_len": int,
    "positions": ("none", "inside", "host"),
    "orthonormal": bool,
    "rotation": ("learnt", "exact"),
    "exact_at_birth": bool,
    "structured": bool,
    "labelled": bool,
    "ordered": bool,
    "equivariant": bool,
    "shift_equivariant": bool,
    "any_series": bool,
    "covariates": bool,
    "program": bool,
    "reads": ("tokens", "vectors", "images"),
    "placement": bool,
    "exact": bool,
}
"""Tags a card may carry, as `causal` or `positions=host`; the contract of an interface follows them.

Of a mixer: `batch_statistics`, it normalises by the batch in training, so that it is held to its contract in eval mode;
`whole_network`, it has residuals, norms and mixers of channels of its own, and a classifier adds none.
Of a head: `orthonormal`, its method `bases()` gives the matrices whose rows or columns are; `rotation`, whether old vectors that
are a rotation of the new ones are found again beyond chance (`learnt`) or exactly.
Of an adapter: `exact_at_birth`, whether it leaves every bit of the outputs as it was until it is trained.
Of a transform: `structured`, it takes transformers whose parts `instar.anatomy` finds, and no other model; `labelled`, it chooses
by labelled batches and does nothing without them.
Of an in-context learner: `ordered`, the order of the examples changes what it says.
Of a forecaster: `equivariant`, a series that is shifted and stretched after training is forecast shifted and stretched
(`shift_equivariant`: shifted only); `any_series`, it forecasts series that it did not learn from; `covariates`, it reads them.
Of a labeller: `program`, its method `program()` gives what it learnt as a program that runs alone.
Of a predictor: `reads`, what x is; `causal`, a position's answer does not know later ones.
Of an attention head: `exact`, its output and gradients are those of softmax attention, but for rounding.
Of an optimiser: `placement`, its presets and all knobs but the rate say only where its state lies, and change no number.
"""


@dataclass(frozen=True)
class Paper:
    """Where a method was published."""

    title: str
    published: str
    authors: list[str]
    bibtex: str
    arxiv: str | None = None


@dataclass(frozen=True)
class Upstream:
    """The authors' code, where there is any."""

    url: str
    licence: str
    commit: str | None = None


@dataclass(frozen=True)
class Cost:
    """Closed forms, of the constructor's numbers and the sizes that belong to the interface.

    Mixer, one layer and one sequence: T tokens, D width, H heads. flops: of one forward pass over T tokens, multiply-adds counted
    as two. state: bytes after T tokens, float32.
    CompatibleHead: D width of the new vectors, O of the old ones, I of what it reads. flops: of the matrix products that
    bring one vector to the old generation. state: bytes of its own tensors, float32.
    Adapter, one layer of I inputs and O outputs with a bias: flops: of the forward pass over T tokens beside the base layer's,
    multiplications and additions of elements included. state: bytes of what is trained, float32. Both of the default form.
    Editor, one edited layer of I inputs and O outputs, N facts: flops: of the work on its matrix, the search for what it shall
    put out excluded. state: bytes of what is written, float32, which is what undo keeps.
    Transform, one layer of I inputs and O outputs: flops: of one token through it. state: bytes of its weight as stored.
    Updater, a base of P parameters in matrices and a vocabulary of V: flops: of the base in a step of training, by token. state:
    bytes of teachers' logits that are kept for a token, the default being all of them.
    Optimizer, one linear layer of I inputs, its bias counted as one more, and O outputs: flops: of a step, mean over steps.
    state: bytes that are kept between steps, counts of steps excluded.
    InContextLearner, N examples of width D: flops: of answering one query after them, from scratch. state: bytes of what it keeps
    of the examples, float32.
    AttentionHead, L queries and M keys of width D, values of width E, F monomials of its degree: flops: of the matrix products of
    the forward pass. state: bytes that it leaves to the gradient, float32 inputs.
    Pooling, one bag of N instances of width D: flops: of the matrix products. state: bytes of its weights, float32.
    Growth, one feed-forward layer of width D, N units or pairs, and M matrices (2 of Pattention, 3 of SwiGLU): flops: of one
    token through it. state: bytes of its weights, float32.
    Forecaster, one window of N series, L rows of context, P rows of horizon: flops: of the matrix products of a forecast. state:
    bytes of what is trained, float32. Both of the default form, without marks of time and covariates.
    Labeller, sequences of up to T tokens, V tokens known, C labels; of a program, K values of a variable and M variables that it
    is given. flops: of the matrix products of one forward pass over T tokens. state: bytes of what is learnt, float32.
    Predictor, one sequence (or image) of T positions, D width, V of a vocabulary: flops: of the matrix products of one more step.
    state: bytes that are computed once and read by every step, float32.
    """

    flops: str
    state: str


@dataclass(frozen=True)
class Knob:
    """A constructor argument worth tuning: this is the tuning space. presets: the ranges of those that have another scale."""

    range: list[float] | None = None
    scale: Literal["linear", "log"] = "linear"
    integer: bool = False
    choices: list[Any] | None = None
    presets: dict[str, list[float]] = field(default_factory=dict)

    def of(self, preset: str) -> Knob:
        """The knob of one preset."""
        return replace(self, range=self.presets.get(preset, self.range), presets={})


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper turned into a comparison. `untestable` needs only a reason.

    measure: "problem.metric" or "problem.metric@condition". subject: an address, this card's default when empty. against: an
    address, "self@condition", or a number. Improvement is subject over against in `direction`; the claim holds when the whole
    interval lies beyond `margin` (inside ±margin for parity). For `ratio` the quantity is better/worse and the margin is the
    ratio to exceed; for `slope` it is the log-log slope over `over`; `exact` and `threshold` compare with a number. same_items:
    that number was measured on the very items of the test here, so that chance lies in the seeds alone.
    """

    id: str
    text: str
    source: str
    kind: ClaimKind
    paper_value: str | None = None
    reason: str | None = None
    measure: str | None = None
    subject: str | None = None
    against: str | float | None = None
    direction: Direction = "lower"
    margin: float = 0.0
    same_items: bool = False
    over: list[str] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)
    seeds: int = 5
    minutes: float = 1.0


@dataclass(frozen=True)
class Card:
    """A method: one published system or baseline."""

    slug: str
    family: str
    title: str
    idea: str
    when_not: str
    kind: Kind
    domains: list[str]
    tasks: list[str]
    path: Path = field(metadata={"given": True})
    entry: str | None = None
    interface: Interface | None = None
    system: str | None = None
    equation: str = ""
    tags: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    paper: Paper | None = None
    upstream: Upstream | None = None
    cost: Cost | None = None
    knobs: dict[str, Knob] = field(default_factory=dict)
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def capability(self, name: str) -> Any:
        """The value of a tag: False, 0 or None when the card does not carry it."""
        kind = CAPABILITIES[name]
        for tag in self.tags:
            key, _, value = tag.partition("=")
            if key == name:
                return True if kind is bool else int(value) if kind is int else value
        return False if kind is bool else 0 if kind is int else None

    def preset(self, name: str | None) -> dict[str, Any]:
        """The constructor values of a preset ("default" and None are the empty one)."""
        if name in (None, "", "default"):
            return {}
        if name not in self.presets:
            raise UnknownNameError.among(f"preset of {self.slug}", str(name), ["default", *self.presets])
        return dict(self.presets[str(name)])

    @property
    def version(self) -> str:
        """A short hash of the card's text: records say which card they followed."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:12] if self.path.exists() else "none"


@dataclass(frozen=True)
class Metric:
    """A figure that a problem reports."""

    id: str
    title: str
    unit: str
    direction: Direction
    kind: Literal["quality", "cost", "time"]
    margin: float = 0.0
    """The difference that matters in practice, declared before any run."""
    item_sd: float | None = None
    """Typical spread over items of the paired difference, measured once: from it comes the warning that data are too few."""
    seed_sd: float | None = None
    """Typical spread of the paired difference over seeds."""
    over: str | None = None
    """What the part after the '@' of the id counts ("context length"), for plots of cost against it."""


@dataclass(frozen=True)
class ProblemCard:
    """A problem: real data, a split, metrics, a budget, and a baseline for each interface."""

    slug: str
    title: str
    idea: str
    entry: str
    accepts: list[Interface]
    baseline: dict[str, str]
    primary: str
    budget: str
    domains: list[str]
    tasks: list[str]
    metrics: list[Metric]
    path: Path = field(metadata={"given": True})
    causal: bool = False
    """Whether later tokens are the answers, so that a method tagged `bidirectional` would read them and is refused."""
    advice: bool = False
    """Whether a user's budget is the real scale here, so that the page may recommend in words."""
    caution: str = ""
    """What a reader must know before ranking methods by this problem."""
    minutes: float = 2.0
    """What a run may take beside its training, before it counts as stuck."""
    needs: list[str] = field(default_factory=list)
    knobs: dict[str, Knob] = field(default_factory=dict)
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)

    def metric(self, name: str) -> Metric:
        """The metric of that id; without an '@' the first one of that name (`bits_per_byte` is `bits_per_byte@T`)."""
        for metric in self.metrics:
            if name in (metric.id, metric.id.partition("@")[0]):
                return metric
        raise UnknownNameError.among(f"metric of {self.slug}", name, (m.id for m in self.metrics))


T = TypeVar("T", Card, ProblemCard)
S = TypeVar("S")


def read(path: Path, schema: type[T]) -> T:
    """Read a card from its file and validate it. Raises CardError."""
    card = typed(path, schema)
    _check(card)
    return card


def typed(path: Path, schema: type[S]) -> S:
    """A TOML file as a dataclass with a field `path`: keys and types are held to its fields, at any depth. Raises CardError."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: is not TOML: {error}") from error
    found: S = _build(table, schema, path, "", {"path": path})
    return found


def _build(table: Any, schema: type, path: Path, prefix: str, given: dict[str, Any]) -> Any:
    if not isinstance(table, dict):
        raise CardError(f"{path}: '{prefix or 'card'}' expects a table, received {_show(table)}.")
    hints = get_type_hints(schema)
    known = {f.name for f in fields(schema) if not f.metadata.get("given")}
    for key in table:
        if key not in known:
            raise CardError(f"{path}: {UnknownNameError.among('key', f'{prefix}{key}', (prefix + k for k in known))}")
    values = dict(given)
    for f in fields(schema):
        if f.name in table:
            values[f.name] = _convert(table[f.name], hints[f.name], path, f"{prefix}{f.name}")
        elif f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise CardError(f"{path}: missing key '{prefix}{f.name}', expected {_expected(hints[f.name])}.")
    return schema(**values)


def _convert(value: Any, hint: Any, path: Path, key: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        errors: list[CardError] = []
        for arm in args:
            if arm is not type(None):
                try:
                    return _convert(value, arm, path, key)
                except CardError as error:
                    errors.append(error)
        if len(errors) == 1:
            raise errors[0]
    elif origin is Literal:
        if value in args:
            return value
    elif origin is list:
        if isinstance(value, list):
            return [_convert(v, args[0], path, f"{key}[{i}]") for i, v in enumerate(value)]
    elif origin is dict:
        if isinstance(value, dict):
            return {k: _convert(v, args[1], path, f"{key}.{k}") for k, v in value.items()}
    elif is_dataclass(hint):
        return _build(value, hint, path, f"{key}.", {})  # type: ignore[arg-type]
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise CardError(f"{path}: '{key}' expects {_expected(hint)}, received {_show(value)}.")


def _expected(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(a) for a in args if a is not type(None))
    if origin is list:
        return f"a list of {_expected(args[0])}"
    if origin is dict:
        return f"a table of {_expected(args[1])}"
    return {str: "a string", int: "an integer", float: "a number", bool: "true or false"}.get(hint, "a table")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _check(card: Card | ProblemCard) -> None:
    """What types alone cannot say."""

    def fail(key: str, expected: str) -> None:
        raise CardError(f"{card.path}: '{key}' {expected}.")

    if card.slug != card.path.stem:
        fail("slug", f"must be the file's name '{card.path.stem}', received '{card.slug}'")
    if card.entry is not None and card.entry.count(":") != 1:
        fail("entry", f"must read 'package.module:Class', received '{card.entry}'")
    for name, knob in card.knobs.items():
        if (knob.range is None) == (knob.choices is None):
            fail(f"knobs.{name}", "needs either range = [low, high] or choices = [...]")
        if knob.presets and (knob.range is None or set(knob.presets) - set(getattr(card, "presets", {}))):
            fail(f"knobs.{name}.presets", f"gives ranges to presets of the card, received {sorted(knob.presets)}")
        for low_high in (knob.range, *knob.presets.values()):
            if low_high is not None and (len(low_high) != 2 or low_high[0] >= low_high[1]):
                fail(f"knobs.{name}.range", f"must be [low, high] with low < high, received {low_high}")
            if low_high is not None and knob.scale == "log" and low_high[0] <= 0:
                fail(f"knobs.{name}.range", "must be positive on a log scale")
    if isinstance(card, ProblemCard):
        known = [m.id for m in card.metrics]
        if card.primary not in known:
            fail("primary", f"must be one of the metrics {known}, received '{card.primary}'")
        for interface in card.accepts:
            if interface not in card.baseline:
                fail("baseline", f"must name a method for {interface}: a comparison without a baseline is refused")
        return
    if card.kind in ("system", "baseline") and (card.entry is None or card.interface is None or card.cost is None):
        fail("kind", f"'{card.kind}' needs 'entry', 'interface' and 'cost'")
    for tag in card.tags:
        check_tag(tag, card.path)
    if card.cost is not None:
        for key in ("flops", "state"):
            try:
                formula.names(getattr(card.cost, key))
            except FormulaError as error:
                raise CardError(f"{card.path}: 'cost.{key}': {error}") from error
    seen: set[str] = set()
    for claim in card.claims:
        where = f"claims.{claim.id}"
        if claim.id in seen:
            fail(where, "appears twice")
        seen.add(claim.id)
        if claim.kind == "untestable":
            if not claim.reason:
                fail(where, "is untestable and must give a reason")
        elif not claim.measure or claim.measure.count(".") < 1:
            fail(f"{where}.measure", f"must read 'problem.metric', received {claim.measure!r}")
        elif claim.same_items and (claim.kind != "threshold" or not isinstance(claim.against, float)):
            fail(f"{where}.same_items", "is said of a threshold's number")
        elif claim.kind == "threshold" and not isinstance(claim.against, float):
            fail(f"{where}.against", f"is a number for a threshold, received {claim.against!r}")
        elif claim.kind != "slope" and claim.against is None:
            fail(f"{where}.against", "must name a method, 'self@condition' or a number")
        elif claim.kind == "slope" and len(claim.over) < 3:
            fail(f"{where}.over", "must list at least three conditions")


def check_tag(tag: str, path: Path) -> None:
    """Raise CardError for what is no capability, or not of its form."""
    name, _, value = tag.partition("=")
    kind = CAPABILITIES.get(name)
    if kind is None:
        raise CardError(f"{path}: 'tags': {UnknownNameError.among('tag', name, CAPABILITIES)}")
    good = value == "" if kind is bool else value.isdigit() if kind is int else value in kind  # type: ignore[operator]
    if not good:
        form = name if kind is bool else f"{name}=NUMBER" if kind is int else f"{name}={'|'.join(kind)}"  # type: ignore[arg-type]
        raise CardError(f"{path}: 'tags' expects '{form}', received '{tag}'.")
