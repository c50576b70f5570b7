"""Every method of the catalogue passes the contract of its interface, and every card keeps to its class.

A new method is tested here by existing.
"""

from __future__ import annotations

import pytest

from instar import catalogue, formula
from instar.bench.claims import metric_of
from instar.cards import Card, Claim
from instar.checks import Check, contract, find, run

METHODS = [card for card in catalogue.methods().values() if card.interface]
CONTRACTS = [(card, check) for card in METHODS for check in contract(card.interface) if not check.not_asked(card)]
PRESETS = [(card, preset) for card in METHODS for preset in card.presets]


@pytest.mark.parametrize(("card", "check"), CONTRACTS, ids=[f"{card.slug}-{check.name}" for card, check in CONTRACTS])
def test_contract(card: Card, check: Check) -> None:
    outcome = run(check, find(card))
    assert outcome.status == "passed", outcome.message


@pytest.mark.parametrize(("card", "preset"), PRESETS, ids=[f"{card.slug}-{preset}" for card, preset in PRESETS])
def test_presets_keep_the_contract(card: Card, preset: str) -> None:
    """All but compilation, which differs little between presets and takes longest."""
    subject = find(f"{card.slug}:{preset}")
    outcomes = [run(check, subject) for check in contract(card.interface) if check.name != "compile"]
    assert [f"{o.name}: {o.message}" for o in outcomes if o.status == "failed"] == []


@pytest.mark.parametrize("card", METHODS, ids=[card.slug for card in METHODS])
def test_card_keeps_to_its_class(card: Card) -> None:
    assert card.family == card.path.parent.name
    assert card.slug == card.path.stem
    if card.cost and card.interface == "Mixer":  # the contract of heads holds their FLOPs to the formula as well
        variables = find(card).variables(64)
        assert formula.names(card.cost.flops) | formula.names(card.cost.state) <= variables.keys()
        assert formula.evaluate(card.cost.flops, variables) > 0


CLAIMS = [(card, claim) for card, claim in catalogue.claims() if claim.kind != "untestable"]


@pytest.mark.parametrize(("card", "claim"), CLAIMS, ids=[f"{card.slug}-{claim.id}" for card, claim in CLAIMS])
def test_claim_names_what_exists(card: Card, claim: Claim) -> None:
    """Subject and opponent are addresses of the catalogue; everything measured is a metric of a problem."""
    problem, metric = metric_of(claim)
    catalogue.parse(claim.subject or card.slug)
    conditions = list(claim.over)
    if isinstance(claim.against, str):
        if claim.against.startswith("self@"):
            conditions.append(claim.against.removeprefix("self@"))
        else:
            catalogue.parse(claim.against)
    for condition in conditions:
        catalogue.problem(problem).metric(f"{metric.id.partition('@')[0]}@{condition}")
