"""Every preset of the catalogue passes the contract of its method's interface. A new preset is tested here by existing."""

from __future__ import annotations

import pytest

from instar import catalogue
from instar.cards import Card
from instar.checks import contract, find, run

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]

METHODS = [card for card in catalogue.methods().values() if card.interface]
PRESETS = [(card, preset) for card in METHODS for preset in card.presets]


@pytest.mark.parametrize(("card", "preset"), PRESETS, ids=[f"{card.slug}-{preset}" for card, preset in PRESETS])
def test_presets_keep_the_contract(card: Card, preset: str) -> None:
    """All but compilation, which differs little between presets and takes longest."""
    subject = find(f"{card.slug}:{preset}")
    outcomes = [run(check, subject) for check in contract(card.interface) if check.name != "compile"]
    assert [f"{o.name}: {o.message}" for o in outcomes if o.status == "failed"] == []
