"""Finds methods and problems by their cards, in this package and in others, without importing any of them.

Another package adds a method by an entry point in the group `instar.methods` (or `instar.problems`):
`toy = "toy_package.toy:Toy"`, with the card `toy_package/toy.toml` beside the module.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from instar import cards, formula
from instar.cards import Card, Claim, ProblemCard
from instar.errors import CardError, UnknownNameError
from instar.locate import is_class, locate

T = TypeVar("T")
_ROOT = Path(__file__).parent
_ADDED: dict[str, tuple[Card, type]] = {}  # methods of this process that came by `add`


def methods() -> dict[str, Card]:
    """Every method by slug: this package's, other packages', and those given to `add`."""
    return {**_discover("methods"), **{slug: card for slug, (card, _) in _ADDED.items()}}


def problems() -> dict[str, ProblemCard]:
    """Every problem by slug."""
    return _discover("problems")


@cache
def _discover(group: str) -> dict[str, Any]:
    schema: Any = ProblemCard if group == "problems" else Card
    found: dict[str, Any] = {}
    for path in [*_builtin(group), *_installed(group)]:
        card = cards.read(path, schema)
        if card.slug in found:
            raise CardError(f"{path}: the slug '{card.slug}' is taken by {found[card.slug].path}.")
        found[card.slug] = card
    return dict(sorted(found.items()))


def _builtin(group: str) -> Iterator[Path]:
    for path in sorted([*_ROOT.glob("*/*.toml"), *_ROOT.glob("lab/*/*.toml")]):
        if path.with_suffix(".py").exists() and (path.parent.name == "problems") == (group == "problems"):
            yield path


def _installed(group: str) -> Iterator[Path]:
    for point in importlib.metadata.entry_points(group=f"instar.{group}"):
        relative = point.value.partition(":")[0].replace(".", "/") + ".toml"
        if point.dist is not None:
            for file in point.dist.files or ():
                if file.as_posix() == relative:
                    yield Path(str(file.locate()))
                    break
            else:
                yield _editable(point, relative)


def _editable(point: importlib.metadata.EntryPoint, relative: str) -> Path:
    """An editable install lists no files: look beside the top-level package or module, which finding does not import."""
    spec = importlib.util.find_spec(point.value.partition(":")[0].partition(".")[0])
    beside = (spec.submodule_search_locations or [str(spec.origin)]) if spec else ()
    for place in beside:
        path = Path(place).parent / relative
        if path.exists():
            return path
    raise CardError(f"The entry point '{point.name} = {point.value}' has no card: expected {relative} in its distribution.")


@dataclass(frozen=True)
class Address:
    """A method as the command line names it: `gla`, or `gla:no_gate` for a preset."""

    slug: str
    preset: str = "default"

    def __str__(self) -> str:
        return self.slug if self.preset == "default" else f"{self.slug}:{self.preset}"

    @property
    def card(self) -> Card:
        return method(self.slug)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the preset gives to the constructor."""
        return self.card.preset(self.preset)


def parse(address: str) -> Address:
    """Read `slug` or `slug:preset`; both must exist."""
    slug, _, preset = address.partition(":")
    found = Address(slug, preset or "default")
    found.card.preset(found.preset)
    return found


def method(slug: str) -> Card:
    """The card of a method. Raises UnknownNameError with the nearest names."""
    known = methods()
    if slug not in known:
        raise UnknownNameError.among("method", slug, known)
    return known[slug]


def problem(slug: str) -> ProblemCard:
    """The card of a problem. Raises UnknownNameError with the nearest names."""
    known = problems()
    if slug not in known:
        raise UnknownNameError.among("problem", slug, known)
    return known[slug]


def load(card: Card | ProblemCard) -> type:
    """The class behind a card; only this imports the method's module."""
    if isinstance(card, Card) and card.slug in _ADDED:
        return _ADDED[card.slug][1]
    if card.entry is None:
        raise UnknownNameError(f"'{card.slug}' is a {getattr(card, 'kind', 'problem')} without code to run.")
    return resolve(card.entry)


def get(address: str) -> type:
    """The class of a method by its address: `instar.get("gla")`."""
    return load(parse(address).card)


def make(address: str, interface: type[T], given: Mapping[str, Any]) -> T:
    """A method of an interface, with arguments beside those of its preset.

    Raises UnknownNameError for a name that nobody has, a method of another interface, or an argument that it does not take.
    """
    found = parse(address)
    cls = load(found.card)
    if not issubclass(cls, interface):
        known = [slug for slug, card in methods().items() if card.interface == interface.__name__]
        raise UnknownNameError.among(interface.__name__.lower(), address, known)
    names = list(inspect.signature(cls).parameters)
    if unknown := [name for name in given if name not in names]:
        raise UnknownNameError.among(f"argument of {found.card.slug}", unknown[0], names)
    return cls(**{**found.arguments, **given})


def of(cls: type) -> Card | None:
    """The card of a class, or of the nearest of its bases that has one."""
    by_entry = {card.entry: card for card in methods().values()}
    for base in cls.__mro__:
        for card, added in _ADDED.values():
            if added is base:
                return card
        found = by_entry.get(f"{base.__module__}:{base.__qualname__}")
        if found is not None:
            return found
    return None


def resolve(entry: str) -> type:
    """Import `package.module:Class`."""
    return locate(entry, is_class)


def add(location: str) -> Card:
    """Take a method from `path/to/file.py:Class` (or `package.module:Class`) into this process's catalogue.

    A card `file.toml` beside it is used; without one the method gets a minimal card, whose slug is the file's name, or for a
    class in a named module its own. Runs in fresh processes call this again. Raises CardError for a slug that is taken.
    """
    where = location.rpartition(":")[0]
    cls = locate(location, is_class)
    path = Path(where if where.endswith(".py") else inspect.getfile(cls)).resolve().with_suffix(".toml")
    if path.is_file():
        card = cards.read(path, Card)
    else:
        card = minimal(cls, path if where.endswith(".py") else path.with_stem(_snake(cls.__name__)))
    if card.slug in _ADDED:
        before, held = _ADDED[card.slug]
        if (held.__qualname__, before.path) != (cls.__qualname__, card.path):
            raise CardError(
                f"{location}: the slug '{card.slug}' is taken by {held.__name__} of {before.path.with_suffix('.py')}; "
                "use a file of another name for each."
            )
    if card.slug in _discover("methods") and _discover("methods")[card.slug].path != card.path:
        raise CardError(
            f"{location}: the slug '{card.slug}' is taken by {_discover('methods')[card.slug].path}; rename the file."
        )
    _ADDED[card.slug] = (card, cls)
    return card


def _snake(name: str) -> str:
    """`Qwen3NextGatedDeltaNet` as `qwen3_next_gated_delta_net`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@contextlib.contextmanager
def holding(card: Card, cls: type) -> Iterator[None]:
    """The catalogue has this method inside the block: what a class needs that is checked without being installed."""
    before = _ADDED.get(card.slug)
    _ADDED[card.slug] = (card, cls)
    try:
        yield
    finally:
        del _ADDED[card.slug]
        if before is not None:
            _ADDED[card.slug] = before


def minimal(cls: type, path: Path) -> Card:
    """A card for a class that has none: enough to check and compare it, with no promise beyond its interface.

    A class may say its capabilities in an attribute `tags`. Otherwise positions of a mixer come from the host, which harms none
    that has its own and gives the others a sense of order.
    """
    from instar import interfaces

    families: dict[type, tuple[cards.Interface, str, list[str]]] = {
        interfaces.Mixer: ("Mixer", "mixers", ["causal", "streaming", "positions=host"]),
        interfaces.CompatibleHead: ("CompatibleHead", "compat", []),
        interfaces.Adapter: ("Adapter", "adapters", []),
        interfaces.Editor: ("Editor", "editing", []),
        interfaces.Transform: ("Transform", "compression", []),
        interfaces.Updater: ("Updater", "compat", []),
        interfaces.Optimizer: ("Optimizer", "optim", []),
        interfaces.InContextLearner: ("InContextLearner", "lab", ["ordered"]),
        interfaces.AttentionHead: ("AttentionHead", "limits", []),
        interfaces.Pooling: ("Pooling", "pooling", []),
        interfaces.Growth: ("Growth", "growth", []),
        interfaces.Forecaster: ("Forecaster", "forecasting", []),
        interfaces.Labeller: ("Labeller", "programs", []),
        interfaces.Predictor: ("Predictor", "inference", []),
    }
    found = next((said for base, said in families.items() if issubclass(cls, base)), None)
    if found is None:
        wanted = " or ".join(base.__name__ for base in families)
        raise CardError(f"{cls.__name__} has no interface of instar.interfaces; it must be a subclass of {wanted}.")
    interface, family, tags = found
    tags = list(getattr(cls, "tags", tags))
    for tag in tags:
        cards.check_tag(tag, path)
    return Card(
        slug=path.stem,
        family=family,
        title=cls.__name__,
        idea=(inspect.getdoc(cls) or cls.__name__).splitlines()[0],
        when_not="not stated",
        kind="system",
        domains=[],
        tasks=[],
        path=path,
        entry=f"{cls.__module__}:{cls.__qualname__}",
        interface=interface,
        tags=tags,
    )


@dataclass(frozen=True)
class Build:
    """How to make a method with chosen arguments: `build(width, heads=…)`; the chosen ones go before what a problem gives."""

    card: Card
    cls: type
    arguments: dict[str, Any]

    def __call__(self, width: int, **given: Any) -> Any:
        return self.cls(width, **{**given, **self.arguments})

    def cost(self, tokens: int, width: int, **given: Any) -> tuple[float, float] | None:
        """Forward FLOPs and state bytes of one layer for one sequence, by the card's formulas; None when it states none."""
        if self.card.cost is None:
            return None
        values = variables(self.cls, {**given, **self.arguments}, T=tokens, D=width)
        return formula.evaluate(self.card.cost.flops, values), formula.evaluate(self.card.cost.state, values)


def variables(cls: type, arguments: dict[str, Any], **sizes: float) -> dict[str, float]:
    """What the formulas of a card may use: the sizes (T, D, …), H, the constructor's numbers (True is 1), and of an argument that
    is one of some words a number for each, `argument_word`, which is 1 for the one that it is and 0 for the others.
    """
    values = {p.name: p.default for p in inspect.signature(cls).parameters.values()} | arguments
    numbers = {name: float(v) for name, v in values.items() if isinstance(v, (int, float))}
    words = {f"{name}_{word}": float(values[name] == word) for name, known in _words(cls).items() for word in known}
    return {**words, **numbers, "H": numbers.get("heads", 1), **sizes}


@cache
def _words(cls: type) -> dict[str, tuple[str, ...]]:
    """The words that arguments may be."""
    try:
        asked = inspect.signature(cls, eval_str=True).parameters
    except NameError:  # types that only a type checker imports
        return {}
    kinds = {name: one.annotation for name, one in asked.items() if get_origin(one.annotation) is Literal}
    return {name: tuple(word for word in get_args(kind) if isinstance(word, str)) for name, kind in kinds.items()}


def claims(cards_: Iterable[Card] | None = None) -> Iterator[tuple[Card, Claim]]:
    """Every claim of every method."""
    for card in methods().values() if cards_ is None else cards_:
        for claim in card.claims:
            yield card, claim


def cite(*addresses: str) -> str:
    """BibTeX of the named methods (all when none is named), each paper once."""
    chosen = [parse(a).card for a in addresses] or list(methods().values())
    return "\n\n".join(dict.fromkeys(card.paper.bibtex.strip() for card in chosen if card.paper)) + "\n"
