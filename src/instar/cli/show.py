"""A card as text for a terminal."""

from __future__ import annotations

import textwrap

from instar.cards import Card, Knob


def describe(card: Card) -> str:
    """Everything on the card, in reading order."""
    lines = [f"{card.title} ({card.slug}; {card.family}, {card.kind})", "", _wrap(card.idea), _wrap(f"Not when: {card.when_not}")]
    if card.paper:
        arxiv = f", arXiv {card.paper.arxiv}" if card.paper.arxiv else ""
        lines += ["", _wrap(f"{', '.join(card.paper.authors)}. {card.paper.title}. {card.paper.published}{arxiv}.")]
    if card.upstream:
        lines.append(f"Code of the authors: {card.upstream.url} ({card.upstream.licence})")
    if card.equation:
        lines += ["", "Equation", textwrap.indent(card.equation.strip(), "  ")]
    if card.cost:
        lines += ["", f"Costs of {measured(card)}", f"  FLOPs  {card.cost.flops}", f"  state  {card.cost.state} bytes"]
    lines += ["", f"Tags     {', '.join(card.tags) or 'none'}", f"Entry    {card.entry or 'none'}"]
    lines += [f"Needs    pip install 'instar[{extra}]'" for extra in card.needs]
    if card.knobs:
        lines += ["", "Knobs"]
        lines += [f"  {name:<18} {space(knob)}" for name, knob in card.knobs.items()]
    if card.presets:
        lines += ["", "Presets"]
        lines += [
            f"  {card.slug}:{name:<12} {', '.join(f'{k}={v}' for k, v in preset.items())}"
            for name, preset in card.presets.items()
        ]
    if card.claims:
        lines += ["", "Claims (verdicts: instar claims)"]
        lines += [textwrap.fill(f"{c.id}: {c.text}", 100, initial_indent="  ", subsequent_indent="    ") for c in card.claims]
    if card.deviations:
        lines += ["", "Deviations from the paper"]
        lines += [textwrap.fill(d, 100, initial_indent="  · ", subsequent_indent="    ") for d in card.deviations]
    return "\n".join(lines)


def measured(card: Card) -> str:
    """What the formulas of its costs count."""
    return {
        "CompatibleHead": "one vector brought to the old generation",
        "Adapter": "one adapted layer",
        "Forecaster": "one forecast of all series",
        "Predictor": "one more step, one sequence",
    }.get(str(card.interface), "one layer, one sequence")


def space(knob: Knob) -> str:
    """The values among which a knob is tuned."""
    if not knob.range:
        return f"one of {knob.choices}"
    others = "".join(f"; {preset}: {low:g} … {high:g}" for preset, (low, high) in knob.presets.items())
    return f"{knob.range[0]:g} … {knob.range[1]:g}, {knob.scale}{others}"


def _wrap(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 100)
