"""Commands that read cards: list, show, cite, problems. They import no torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from instar import catalogue
from instar.cards import Card, ProblemCard

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command("list")(list_)
    app.command()(show)
    app.command()(cite)
    app.command()(problems)


def list_(
    family: Annotated[str | None, typer.Option(help="Only this family (folder), such as mixers.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only methods with this tag, such as causal or positions=none.")] = None,
    kind: Annotated[str | None, typer.Option(help="system, baseline, study, dataset or survey.")] = None,
    domain: Annotated[str | None, typer.Option(help="Only this domain, such as language.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task, such as 'language modelling'.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods.

    Examples:  `instar list --family mixers`  ·  `instar list --tag streaming --kind system`  ·  `instar list --json`
    """
    wanted = {"family": family, "kind": kind}
    chosen = [
        card
        for card in catalogue.methods().values()
        if all(v is None or getattr(card, k) == v for k, v in wanted.items())
        and set(tag or ()) <= set(card.tags)
        and (domain is None or domain in card.domains)
        and (task is None or task in card.tasks)
    ]
    if as_json:
        _print_json([_summary(card) for card in chosen])
        return
    if not chosen:
        typer.echo("No method matches.", err=True)
        raise typer.Exit(1)
    for card in chosen:
        typer.echo(f"{card.slug:<18} {card.family:<10} {card.kind:<9} {card.idea}")
    presets = sum(len(card.presets) for card in chosen)
    typer.echo(f"\n{len(chosen)} methods, {presets} presets, {sum(len(c.claims) for c in chosen)} claims. More: instar show SLUG")


def show(
    method: Annotated[str, typer.Argument(help="A method, or a preset of it: gla, gla:no_gate.")],
    as_json: Json = False,
) -> None:
    """Show what is known of a method: idea, equation, costs, knobs, presets, claims, deviations.

    Examples:  `instar show gla`  ·  `instar show aaren --json`
    """
    card = catalogue.parse(method).card
    if as_json:
        _print_json(_plain(card))
        return
    from instar.cli.show import describe

    typer.echo(describe(card))


def cite(methods: Annotated[list[str] | None, typer.Argument(help="Methods; all when none is named.")] = None) -> None:
    """Print BibTeX.

    Example:  `instar cite gla softmax > refs.bib`
    """
    typer.echo(catalogue.cite(*(methods or ())), nl=False)


def problems(as_json: Json = False) -> None:
    """List the problems that methods are compared on.

    Example:  `instar problems`
    """
    found = catalogue.problems()
    if as_json:
        _print_json([_plain(card) for card in found.values()])
        return
    for card in found.values():
        typer.echo(f"{card.slug:<12} {', '.join(card.accepts):<10} baseline {', '.join(card.baseline.values()):<10} {card.idea}")


def _summary(card: Card) -> dict[str, Any]:
    keys = ("slug", "family", "kind", "title", "idea", "interface", "system", "domains", "tasks", "tags", "needs")
    return {
        **{key: getattr(card, key) for key in keys},
        "arxiv": card.paper.arxiv if card.paper else None,
        "published": card.paper.published if card.paper else None,
        "presets": sorted(card.presets),
        "claims": [claim.id for claim in card.claims],
    }


def _plain(card: Card | ProblemCard) -> dict[str, Any]:
    table = asdict(card)
    table["path"] = str(card.path)
    if isinstance(card, Card):
        table["arxiv"] = card.paper.arxiv if card.paper else None
    return table


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
