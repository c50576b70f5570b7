"""A page for each method, made from its card, its class and the records behind its claims; and the page that lists them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instar import catalogue
from instar.bench.claims import Judgement
from instar.cards import Card, Knob
from instar.cli import show
from instar.shelf import listed
from instar.site import docstrings, equation, judged, text


def page(card: Card, judgements: Sequence[Judgement]) -> str:
    """Everything on the card, in reading order."""
    mine = [j for j in judgements if j.method == card.slug]
    return "\n\n".join(part for part in _parts(card, mine) if part) + "\n"


def index(cards: Sequence[Card], judgements: Sequence[Judgement]) -> str:
    """All methods by clock and family."""
    lines = [
        "# Methods",
        f"{len(cards)} methods: published systems, the baselines that stand beside them, and studies. Each page is made from the "
        "method's card and the records behind its claims; nothing on it is typed.",
        "[All papers behind the library](../papers.html), with a search by need, and those of which nothing runs yet · "
        "[feed of new methods and verdicts](../feed.xml) · [every claim](../claims.md)",
    ]
    for clock, families in by_clock(cards).items():
        about = next((c.updates for c in listed.clocks() if c.id == clock), "")
        lines += [f"## {text.plain(clock[:1].upper() + clock[1:])}", text.plain(f"Updated: {about}.") if about else ""]
        for family, found in families.items():
            lines += [f"### {text.plain(family)}"]
            lines += ["\n".join(_line(card, judgements) for card in found)]
    return "\n\n".join(line for line in lines if line) + "\n"


def by_clock(cards: Sequence[Card]) -> dict[str, dict[str, list[Card]]]:
    """Methods by clock, the fastest first, and by family."""
    clocks = [clock.id for clock in listed.clocks()]
    names = [*clocks, *sorted({listed.clock_of(card.family) for card in cards} - set(clocks))]
    found: dict[str, dict[str, list[Card]]] = {}
    for clock in names:
        for card in cards:
            if listed.clock_of(card.family) == clock:
                found.setdefault(clock, {}).setdefault(card.family, []).append(card)
    return found


def name(slug: str, folder: str = "") -> str:
    """A link to the page of a method, from `folder`, which is empty among the pages of methods."""
    return f"[{text.code(slug)}]({folder}{text.file(slug)}.md)"


def knobs(found: Mapping[str, Knob], defaults: Mapping[str, Any]) -> str:
    """The tuning space as a table."""
    rows = [
        [text.code(key), text.code(repr(defaults[key])) if key in defaults else "", text.plain(show.space(knob))]
        for key, knob in found.items()
    ]
    return text.table(["knob", "default", "tuned over"], rows) if rows else ""


def presets(slug: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The presets as a table."""
    rows = [
        [text.code(f"{slug}:{key}"), text.code(", ".join(f"{k}={v!r}" for k, v in values.items()))]
        for key, values in found.items()
    ]
    return text.table(["preset", "arguments"], rows) if rows else ""


def _parts(card: Card, mine: Sequence[Judgement]) -> Iterator[str]:
    yield f"# {text.plain(card.title)}"
    yield _facts(card)
    yield text.plain(card.idea)
    yield f"**Not when:** {text.plain(card.when_not)}"
    if card.equation:
        yield "## Equation"
        yield equation.markdown(card.equation)
    if card.entry:
        yield "## In code"
        yield from _code(card)
    if card.cost:
        yield "## Costs"
        yield f"Of {show.measured(card)}; the letters are [those of the interface](../api/instar.cards.md#instar.cards.Cost)."
        yield text.table(["", "formula"], [["FLOPs", text.code(card.cost.flops)], ["state, bytes", text.code(card.cost.state)]])
    if card.knobs or card.presets:
        yield "## Settings"
        yield knobs(card.knobs, _defaults(card))
        yield presets(card.slug, card.presets)
    if mine:
        yield "## What holds here"
        yield judged.listed(mine)
    if card.deviations:
        yield "## What differs from the paper"
        yield "\n".join(f"- {text.plain(each)}" for each in card.deviations)
    if card.paper or card.upstream:
        yield "## Citation"
        yield from _citation(card)


def _facts(card: Card) -> str:
    facts = [text.code(card.slug), card.kind, text.plain(f"{listed.clock_of(card.family)} ({card.family})")]
    facts += [text.plain(", ".join(words)) for words in (card.domains, card.tasks, card.tags) if words]
    beside = [c.slug for c in catalogue.methods().values() if card.system and c.system == card.system and c.slug != card.slug]
    lines = [" · ".join(facts)]
    if beside:
        lines.append("Beside it: " + ", ".join(name(slug) for slug in beside))
    return "\n\n".join(f'<div class="facts" markdown="1">\n{line}\n</div>' for line in lines)


def _code(card: Card) -> Iterator[str]:
    module, _, cls = str(card.entry).partition(":")
    lines = [f"pip install 'instar[{extra}]'" for extra in card.needs]
    lines += [f"instar show {card.slug}", f"instar cite {card.slug}"]
    lines += [f"instar reproduce {card.slug}"] if any(c.kind != "untestable" for c in card.claims) else []
    yield text.block(f"from {module} import {cls}", "python")
    if module.startswith("instar."):
        yield f"[Signature and source](../api/{text.file(module)}.md#{module}.{cls})"
    yield docstrings.markdown(inspect.getdoc(catalogue.load(card)) or "")
    yield text.block("\n".join(lines), "sh")


def _citation(card: Card) -> Iterator[str]:
    if card.paper:
        paper = card.paper
        yield f"{text.plain(', '.join(paper.authors))}: {text.plain(paper.title)}. {text.plain(paper.published)}." + (
            f" {text.link(f'arXiv {paper.arxiv}', f'https://arxiv.org/abs/{paper.arxiv}')}" if paper.arxiv else ""
        )
        yield text.block(paper.bibtex.strip(), "bibtex")
    if card.upstream:
        at = f" at {text.code(card.upstream.commit)}" if card.upstream.commit else ""
        yield f"Code of the authors: {text.link(card.upstream.url, card.upstream.url)}{at} ({text.plain(card.upstream.licence)})."


def _defaults(card: Card) -> dict[str, Any]:
    if card.entry is None:
        return {}
    parameters = inspect.signature(catalogue.load(card)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _line(card: Card, judgements: Sequence[Judgement]) -> str:
    verdicts = judged.count([j for j in judgements if j.method == card.slug])
    said = f"{card.kind} · {verdicts}" if verdicts else card.kind
    return f"- {name(card.slug)} {text.plain(card.idea)}\n    <br><small>{said}</small>"
