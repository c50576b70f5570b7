"""Every method of the catalogue passes the contract of its interface. A new method is tested here by existing."""

from __future__ import annotations

import pytest

from instar import catalogue
from instar.cards import Card
from instar.checks import Check, contract, find, run

pytestmark = pytest.mark.timeout(600)  # the longest files: marked so, they begin first

METHODS = [card for card in catalogue.methods().values() if card.interface]
CONTRACTS = [(card, check) for card in METHODS for check in contract(card.interface) if not check.not_asked(card)]


@pytest.mark.parametrize(("card", "check"), CONTRACTS, ids=[f"{card.slug}-{check.name}" for card, check in CONTRACTS])
def test_contract(card: Card, check: Check) -> None:
    outcome = run(check, find(card))
    assert outcome.status == "passed", outcome.message
