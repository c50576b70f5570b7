"""A page for each problem, made from its card and the claims that are measured on it; and the page that lists them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from instar import catalogue
from instar.bench.claims import Judgement
from instar.cards import ProblemCard
from instar.report import ledger
from instar.site import judged, methods, text


def page(card: ProblemCard, judgements: Sequence[Judgement]) -> str:
    """Everything on the card, in reading order."""
    return "\n\n".join(part for part in _parts(card, judgements) if part) + "\n"


def index(cards: Sequence[ProblemCard]) -> str:
    """All problems with what they accept and the baseline of each."""
    about = f"{len(cards)} problems that methods are compared on: data, a split, metrics, a budget, and baselines."
    return f"# Problems\n\n{about}\n\n" + "\n".join(_line(card) for card in cards) + "\n"


def _parts(card: ProblemCard, judgements: Sequence[Judgement]) -> Iterator[str]:
    yield f"# {text.plain(card.title)}"
    facts = [text.code(card.slug), *(text.plain(", ".join(words)) for words in (card.domains, card.tasks) if words)]
    yield f'<div class="facts" markdown="1">\n{" · ".join(facts)}\n</div>'
    yield text.plain(card.idea)
    yield f"**Before you rank by it:** {text.plain(card.caution)}" if card.caution else ""
    yield f"Takes (baseline): {_baselines(card)}."
    yield f"Budget of a run: {text.code(card.budget)}. Judged first by {text.code(card.primary)}."
    yield "\n".join(f"Needs {text.code(f'pip install instar[{extra}]')}" for extra in card.needs)
    yield text.block(
        f"instar compare {card.slug} --methods {','.join(card.baseline.values())} --seeds 3 --out runs/{card.slug}", "sh"
    )
    module, _, cls = card.entry.partition(":")
    if module.startswith("instar."):
        yield f"[Settings and source](../api/{text.file(module)}.md#{module}.{cls})"
    yield "## Metrics"
    rows = [
        [text.code(m.id), text.plain(m.title), text.plain(m.unit), f"{m.direction} is better", m.kind, f"{m.margin:g}"]
        for m in card.metrics
    ]
    yield text.table(["metric", "what", "unit", "", "kind", "matters from"], rows)
    if card.knobs or card.presets:
        yield "## Settings"
        yield methods.knobs(card.knobs, {})
        yield methods.presets(card.slug, card.presets)
    here = [j for j in judgements if j.measure.partition(".")[0] == card.slug]
    if here:
        yield "## Claims measured on it"
        yield ledger.markdown(judged.rows(here, lambda slug: methods.name(slug, "../methods/")))


def _line(card: ProblemCard) -> str:
    said = f"{_baselines(card)} · {text.plain(', '.join(card.domains))}"
    return f"- [{text.code(card.slug)}]({text.file(card.slug)}.md) {text.plain(card.idea)}\n    <br><small>{said}</small>"


def _baselines(card: ProblemCard) -> str:
    known = catalogue.methods()
    said = []
    for interface in card.accepts:
        slug = card.baseline[interface].partition(":")[0]
        shown = methods.name(slug, "../methods/") if slug in known else text.code(slug)
        said.append(f"{interface} ({shown})")
    return ", ".join(said)
