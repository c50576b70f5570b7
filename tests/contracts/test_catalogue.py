"""Every card keeps to its class, and every claim names what exists. A new method is tested here by existing."""

from __future__ import annotations

import inspect
import math

import pytest

from instar import catalogue, formula
from instar.bench.claims import metric_of
from instar.cards import Card, Claim
from instar.checks import find
from instar.errors import ShapeError

METHODS = [card for card in catalogue.methods().values() if card.interface]


@pytest.mark.parametrize("card", METHODS, ids=[card.slug for card in METHODS])
def test_card_keeps_to_its_class(card: Card) -> None:
    assert card.family == card.path.parent.name
    assert card.slug == card.path.stem
    if card.cost and card.interface == "Mixer":  # the contract of heads holds their FLOPs to the formula as well
        variables = find(card).variables(64)
        assert formula.names(card.cost.flops) | formula.names(card.cost.state) <= variables.keys()
        assert formula.evaluate(card.cost.flops, variables) > 0


MIXERS = [card for card in METHODS if card.interface == "Mixer"]


@pytest.mark.parametrize("card", MIXERS, ids=[card.slug for card in MIXERS])
def test_settings_of_mixers_that_are_not_finite_are_refused(card: Card) -> None:
    """Comparisons with NaN are false, so that a check for what is too small lets it pass."""
    cls = catalogue.load(card)
    for name, parameter in inspect.signature(cls).parameters.items():
        for value in (math.nan, math.inf, -math.inf) if isinstance(parameter.default, float) else ():
            with pytest.raises((ShapeError, OverflowError, ValueError)):
                cls(16, **{name: value})


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
