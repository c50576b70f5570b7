"""The records of this repository are of its methods as they are: a claim reads them by a method's name alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from instar import catalogue
from instar.bench import plan as planning
from instar.bench.plan import Plan, Request
from instar.bench.record import Store

RESULTS = Path(__file__).parents[2] / "results"
PLANS = sorted(RESULTS.rglob("plan.json"))


@pytest.mark.parametrize("path", PLANS, ids=[path.parent.relative_to(RESULTS).as_posix() for path in PLANS])
def test_a_folder_holds_runs_of_the_settings_of_today(path: Path) -> None:
    """Where a default moved, what was run before is to go: `instar reproduce` would refuse the folder, but a ledger reads it."""
    plan = Plan.load(path)
    methods = tuple(entry.address for entry in plan.entries)
    request = Request(plan.problem, methods, settings=plan.settings, baseline=plan.baseline.address, least=1)
    now = {entry.address: entry.arguments for entry in planning._entries(request, plan.card)}
    for entry in plan.entries:
        defaults = planning._parameters(catalogue.load(catalogue.method(entry.slug)))
        asked = planning._known(*(planning._plain(one) for one in (now[entry.address], entry.arguments, defaults)))
        assert asked == entry.arguments, entry.address
    named = {entry.address: entry.arguments for entry in plan.entries}
    for record in Store(path.parent).all():
        if record["kind"] == "run":
            assert record["address"] in named, "a run of a method that the plan does not name"
            arguments = record["spec"]["method"]["arguments"]
            assert record["setting"] != "default" or arguments == named[record["address"]], record["id"]
