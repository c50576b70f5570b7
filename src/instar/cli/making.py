"""A method of the catalogue as it is written on the command line: its address, and after a colon its settings."""

from __future__ import annotations

from typing import Any


def made(text: str, interface: type[Any]) -> Any:
    """`blockwise:bits=4,block=32` as an object of an interface. Raises what `catalogue.make` raises, PlanError for no setting."""
    from instar import catalogue
    from instar.doors.opening import pairs
    from instar.upgrade.sides import knobs

    address, _, rest = text.partition(":")
    given = [part for part in rest.split(",") if part]
    presets = [part for part in given if "=" not in part]
    if presets:
        address = f"{address}:{presets[0]}"
    return catalogue.make(address, interface, knobs(pairs([part for part in given if part not in presets[:1]])))
