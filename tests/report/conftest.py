"""Every test of the report has a catalogue of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from made_records import shelve

from instar.cards import ProblemCard


@pytest.fixture(autouse=True)
def shelf(monkeypatch: pytest.MonkeyPatch) -> dict[str, ProblemCard]:
    """The problems of the catalogue, to be changed by a test."""
    return shelve(monkeypatch)


@pytest.fixture(scope="module")
def module_shelf() -> Iterator[None]:
    """The same for fixtures that live as long as a module."""
    with pytest.MonkeyPatch.context() as patch:
        shelve(patch)
        yield
