"""The contract of heads has teeth: each planted defect is caught by the check that is there for it, with words that say why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from instar import catalogue
from instar.cards import Knob
from instar.checks import Outcome, Subject, check, contract, run
from instar.checks.compatible_head import check_rows
from instar.errors import ContractError

sys.path.insert(0, str(Path(__file__).parent))
import head_defects as d
from head_defects import subject

PLANTED = [  # defect · the check that is there for it · words of its message · other checks that cannot pass then
    (subject(d.Forgets), "arguments", "keep the argument share", "saved"),
    (subject(d.Beside, knobs={"shares": Knob(range=[0, 1])}), "arguments", "no argument shares", ""),
    (subject(d.Beside, knobs={"new_dim": Knob(range=[-1, 1])}), "arguments", "does not construct", ""),
    (subject(d.TooWide), "shapes", "expected torch.float32 [0, 16], received torch.float32 [0, 17]", "chain saved rotation"),
    (subject(d.Longer), "shapes", "of one length", "nested"),
    (subject(d.Single), "shapes", "received torch.float64", "rotation"),
    (subject(d.TakesAnything), "refusals", "a fit on pairs of other widths must raise InstarError", ""),
    (subject(d.HalfDone), "refusals", "the head is another one", ""),
    (subject(d.TakesFew), "refusals", "a fit on one pair must be refused; it went through", ""),
    (subject(d.DrawsGlobally), "deterministic", "global generator", "chain rotation"),
    (subject(d.Remembers), "deterministic", "had been fitted before", ""),
    (subject(d.ChangesPairs), "deterministic", "changed the pairs", ""),
    (subject(d.Untold), "monitor", "it was told of []", ""),
    (subject(d.InPlace), "monitor", "interrupted left weight changed", ""),
    (subject(d.Overflows), "extremes", "long vectors", ""),
    (subject(d.Couples), "rows", "differs from its rows alone", "extremes rotation"),
    (subject(d.LosesBuffer), "saved", "persistent buffers", ""),
    (subject(d.KeepsOutside), "saved", "something learnt is not kept", "rotation"),
    (subject(d.NotPrefix), "nested", "full(x)[:, :old_dim]", ""),
    (subject(d.HidesPrevious), "chain", "newest must be 2", "saved"),
    (subject(d.SpoilsPrevious), "chain", "serves stored vectors", ""),
    (subject(d.Beside, "orthonormal"), "orthonormal", "is off orthonormality", ""),
    (subject(d.Blurs), "rotation", "Tag it rotation=learnt", ""),
    (subject(d.KeepsOutside, "rotation=learnt"), "rotation", "chance is 12%", "saved"),
    (subject(d.Beside, flops="2 * D * O + O"), "costs", "flops is 768", ""),
]


def failures(subject: Subject) -> dict[str, Outcome]:
    return {o.name: o for o in (run(c, subject) for c in contract("CompatibleHead")) if o.status == "failed"}


@pytest.mark.parametrize(
    ("planted", "name", "words", "others"), PLANTED, ids=[f"{p.cls.__name__}-{name}" for p, name, _, _ in PLANTED]
)
def test_defect_is_caught_by_the_check_that_is_there_for_it(planted: Subject, name: str, words: str, others: str) -> None:
    found = failures(planted)
    assert set(found) == {name, *others.split()}
    assert words.lower() in found[name].message.lower()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_correct_head_passes_everything(seed: int) -> None:
    correct = subject(d.Beside)
    outcomes = check(Subject(correct.cls, correct.card, seed=seed))
    assert [o for o in outcomes if o.status == "failed"] == []
    assert {o.name for o in outcomes if o.status == "skipped"} == {"orthonormal"}


def test_crash_is_a_finding_with_its_place() -> None:
    assert failures(subject(d.Crashes))["rows"].message.startswith("raised RuntimeError: out of order (head_defects.py, line")


def test_one_check_called_alone_raises() -> None:
    check_rows(subject(d.Beside))
    with pytest.raises(ContractError, match="rows alone"):
        check_rows(subject(d.Couples))


def test_class_without_a_card_is_checked_and_leaves_the_catalogue_as_it_was() -> None:
    before = list(catalogue.methods())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    outcomes = {o.name: o.status for o in check(d.Beside)}
    assert outcomes.pop("costs") == outcomes.pop("rotation") == outcomes.pop("orthonormal") == "skipped"
    assert set(outcomes.values()) == {"passed"}
    assert list(catalogue.methods()) == before
    assert torch.equal(state, torch.get_rng_state())
