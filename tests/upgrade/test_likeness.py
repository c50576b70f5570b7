"""How alike two spaces are, in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from digits_upgrades import upgrade

from instar.upgrade.likeness import kind_of_upgrade, likeness


def test_a_rotation_is_the_same_space_in_other_coordinates() -> None:
    _, old, _ = upgrade("cleaner")
    rows = old.documents
    turned = rows @ np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0].astype(np.float32)
    found = likeness(rows, turned)
    assert found["cka"] == pytest.approx(1)
    assert found["neighbours"] > 0.99
    assert abs(found["cosine"]) < 0.2
    assert kind_of_upgrade(found).startswith("same family")


def test_itself_and_noise() -> None:
    _, old, _ = upgrade("cleaner")
    same = likeness(old.documents, old.documents)
    assert same == pytest.approx({"cka": 1, "neighbours": 1, "cosine": 1})
    assert kind_of_upgrade(same).startswith("fine-tune")
    noise = np.random.default_rng(1).standard_normal((len(old.documents), 32)).astype(np.float32)
    found = likeness(old.documents, noise)
    assert "cosine" not in found
    assert kind_of_upgrade(found).startswith("unrelated")
    assert found["neighbours"] == pytest.approx(10 / min(2000, len(noise)), abs=0.01)
