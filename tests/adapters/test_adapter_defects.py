"""The contract of an adapter has teeth: each defect is caught by the check that is there for it, and the words say why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from instar.checks import Subject, check, contract, run

sys.path.insert(0, str(Path(__file__).parent))
import adapter_defects as d
from adapter_defects import subject

PLANTED = [  # defect · the check that is there for it · words of its message
    (subject(d.Forgets), "arguments", "keep the argument start"),
    (subject(d.Born), "birth", "at birth outputs differ"),
    (subject(d.WritesBase), "frozen", "changed query.weight of the base"),
    (subject(d.Idle), "frozen", "gets no gradient"),
    (subject(d.Doubles), "gradients", "Jacobian"),
    (subject(d.MergesOther), "merge", "differs from the adapted one"),
    (subject(d.Transposed), "merge", "differs from the adapted one"),
    (subject(d.Transposed), "unload", "differs from the adapted one"),
    (subject(d.Outside), "saved", "keep all that is learnt in parameters"),
    (subject(d.Shared), "several", "computes something else than alone"),
    (subject(d.Overflows), "types", "or not finite"),
    (subject(d.Scale, state="4 * I"), "costs", "state is"),
    (subject(d.Scale, flops="2 * I * O"), "costs", "flops is"),
]


@pytest.mark.parametrize(("planted", "name", "words"), PLANTED, ids=[f"{p.cls.__name__}-{name}" for p, name, _ in PLANTED])
def test_defect_is_caught_by_the_check_that_is_there_for_it(planted: Subject, name: str, words: str) -> None:
    outcome = run(next(one for one in contract("Adapter") if one.name == name), planted)
    assert outcome.status == "failed"
    assert words in outcome.message


def test_a_correct_adapter_passes_everything() -> None:
    outcomes = [run(one, subject(d.Scale)) for one in contract("Adapter")]
    assert [f"{o.name}: {o.message}" for o in outcomes if o.status != "passed"] == []


def test_a_class_without_a_card_is_checked_by_itself() -> None:
    outcomes = {o.name: o.status for o in check(d.Scale)}
    assert outcomes.pop("costs") == "skipped"
    assert set(outcomes.values()) == {"passed"}
