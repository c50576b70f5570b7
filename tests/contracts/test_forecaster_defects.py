"""The contract of forecasters has teeth: each planted defect is caught by the check that is there for it, in words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from instar.cards import Knob
from instar.checks import Subject, check, contract, run

sys.path.insert(0, str(Path(__file__).parent))
import forecaster_defects as d
from forecaster_defects import subject

SERIES = "any_series"
PLANTED = [  # defect · the check that is there for it · words of its message
    (subject(d.Forgets, SERIES), "arguments", "keep the argument share"),
    (subject(d.Plain, SERIES, knobs={"rates": Knob(range=[0, 1])}), "arguments", "no argument rates"),
    (subject(d.LooksAhead, SERIES), "no_look_ahead", "something is read that is not to be read"),
    (subject(d.ScalesByAll, SERIES), "no_look_ahead", "something is read that is not to be read"),
    (subject(d.ChangesPanel, SERIES), "no_look_ahead", "changed the panel"),
    (subject(d.ReadsTheUnknown, SERIES), "covariates", "what an unknown covariate is later"),
    (subject(d.DropsTheLast, SERIES), "batches", "are 10 forecasts of 12"),
    (subject(d.CouplesWindows, SERIES), "batches", "at a time, forecasts differ"),
    (subject(d.DrawsGlobally, SERIES), "deterministic", "global generator"),
    (subject(d.Untold, SERIES), "monitor", "it told of []"),
    (subject(d.KeepsGaps, SERIES), "missing", "not finite"),
    (subject(d.LosesBuffer, SERIES), "saved", "predicts another"),
    (subject(d.TakesAnything, SERIES), "refusals", "fewer rows than a window"),
    (subject(d.KnowsNames, SERIES), "new_series", "takes no others"),
    (subject(d.Plain), "new_series", "must be refused"),
    (subject(d.Plain, SERIES, "equivariant"), "equivariant", "stretched by 3"),
    (subject(d.Plain, SERIES, state="4 * L * P"), "costs", "bytes of what is trained"),
]


@pytest.mark.parametrize(("planted", "name", "words"), PLANTED, ids=[f"{p.cls.__name__}-{name}" for p, name, _ in PLANTED])
def test_defect_is_caught_by_the_check_that_is_there_for_it(planted: Subject, name: str, words: str) -> None:
    (asked,) = (one for one in contract("Forecaster") if one.name == name)
    outcome = run(asked, planted)
    assert outcome.status == "failed"
    assert words in outcome.message


@pytest.mark.parametrize("seed", [0, 1])
def test_correct_forecaster_passes_everything(seed: int) -> None:
    correct = subject(d.Plain, SERIES, "shift_equivariant")
    outcomes = check(Subject(correct.cls, correct.card, seed=seed))
    assert [o for o in outcomes if o.status == "failed"] == []


def test_a_class_without_a_card_is_checked() -> None:
    outcomes = {o.name: o.message for o in check(d.KnowsNames) if o.status == "failed"}
    assert outcomes == {}
