"""The contract can fail: each planted defect is caught by the check that is there for it, with a message that says why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from instar import catalogue
from instar.cards import Knob
from instar.checks import Outcome, Subject, check, contract, run
from instar.checks.sequence import check_causality, check_value
from instar.errors import CardError, ContractError, UnknownNameError

sys.path.insert(0, str(Path(__file__).parent))
import defects as d
from defects import subject

PLANTED = [  # defect · the check that is there for it · words of its message · other checks that cannot pass then
    (subject(d.LeaksFuture), "causality", "before token 1", "split padding reset"),
    (subject(d.LeaksMean), "causality", "the future leaks", "split padding reset"),
    (subject(d.IgnoresState), "mixing", "ignores the state", "split"),
    (subject(d.MixesNothing), "mixing", "nothing moves between positions", ""),
    (subject(d.ForgetsHistory), "split", "token by token, against one call: the output", "padding reset"),
    (subject(d.MutatesState), "value", "without gradients: the second continuation", ""),
    (subject(d.PadsReachOutputs), "padding", "the output differs", "reset"),
    (subject(d.PadsDecayState), "padding", "Masked tokens must leave the state as it is", "reset"),
    (subject(d.IgnoresReset), "reset", "packed from several sequences", ""),
    (subject(d.CouplesRows), "rows", "against each row alone", "padding reset"),
    (subject(d.BatchLast), "shapes", "float64[8, 2]; the batch axis (here 2) must come first", "value padding reset rows"),
    (subject(d.ReferenceDiffers), "reference", "against reference: the output", "precision"),
    (subject(d.FastPathCutsGradient), "reference", "the gradient with respect to x", "gradients"),
    (subject(d.CutsGradient), "gradients", "autograd says", "split"),
    (subject(d.ComputesInFloat32), "gradients", "float32 inside", ""),
    (subject(d.LosesDigits), "precision", "float32 output", "gradients half"),
    (subject(d.Unbounded), "extremes", "nan", "half"),
    (subject(d.BreaksAutocast), "autocast", "raised RuntimeError", ""),
    (subject(d.Noisy), "deterministic", "'stochastic'", ""),
    (subject(d.AnotherEval), "deterministic", "in eval mode, against training mode", ""),
    (subject(d.Seeds), "deterministic", "draws from torch's global generator, or seeds it", ""),
    (subject(d.WidensHalf), "half", "Cast to bfloat16, the output in one call is torch.float32", ""),
    (subject(d.CountsInHalf), "half", "typically", ""),
    (subject(d.LosesBuffer), "copies", "persistent buffer", ""),
    (subject(d.AnotherInference), "inference", "without gradients", ""),
    (subject(d.ChangesMask), "inputs", "argument mask in place", "split padding reset reference extremes inference"),
    (subject(d.ViewsChunks), "inputs", "raised RuntimeError", ""),
    (subject(d.Leaky, state="4 * D + 4"), "state_bytes", "32 bytes; the card's formula '4 * D + 4' gives 36", ""),
    (subject(d.Leaky, state="4 * T * D"), "state_bytes", "after 24 tokens", ""),
    (subject(d.Leaky, knobs={"decay": Knob(range=[0, 1])}), "arguments", "decay", ""),
    (subject(d.Leaky, "causal", "streaming", "stochastic"), "seeded", "drop the tag", ""),
    (subject(d.Leaky, "bidirectional", "streaming"), "future", "tag it causal", ""),
    (subject(d.Leaky, "causal"), "refuses_state", "accepts a state", ""),
    (subject(d.Leaky, "causal", "streaming", "max_len=40"), "max_len", "41 tokens were accepted", ""),
]


def failures(subject: Subject, *, compiled: bool = False) -> dict[str, Outcome]:
    """The failed checks. Compilation takes a second, so only the defect that concerns it is compiled."""
    checks = [c for c in contract("Mixer") if compiled or c.name != "compile"]
    return {o.name: o for o in (run(c, subject) for c in checks) if o.status == "failed"}


@pytest.mark.parametrize(
    ("planted", "name", "words", "others"), PLANTED, ids=[f"{p.cls.__name__}-{name}" for p, name, _, _ in PLANTED]
)
def test_defect_is_caught_by_the_check_that_is_there_for_it(planted: Subject, name: str, words: str, others: str) -> None:
    found = failures(planted)
    assert set(found) == {name, *others.split()}
    assert words.lower() in found[name].message.lower()


def test_decision_on_values_is_caught_by_compilation_alone() -> None:
    found = failures(subject(d.ReadsValues), compiled=True)
    assert set(found) == {"compile"}
    assert "not one graph" in found["compile"].message


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_correct_mixer_passes_everything(seed: int) -> None:
    correct = subject(d.Leaky)
    outcomes = check(Subject(correct.cls, correct.card, seed=seed, width=8 + seed))
    assert [o for o in outcomes if o.status == "failed"] == []
    asked = {o.name for o in outcomes if o.status == "passed"}
    assert {c.name for c in contract("Mixer")} - asked == {"future", "refuses_state", "seeded", "max_len"}


def test_stochastic_mixer_passes_under_its_tag_only() -> None:
    assert failures(subject(d.Dropout, "causal", "streaming", "stochastic")) == {}
    assert "deterministic" in failures(subject(d.Dropout))


def test_statistics_of_the_batch_pass_under_their_tag_only() -> None:
    assert failures(subject(d.NormalisesByBatch, "causal", "streaming", "batch_statistics")) == {}
    assert {"split", "padding", "reset"} <= set(failures(subject(d.NormalisesByBatch)))


def test_float32_is_judged_by_its_own_tolerance() -> None:
    correct = subject(d.Leaky)
    assert failures(Subject(correct.cls, correct.card, width=8, dtype=torch.float32)) == {}
    spoilt = subject(d.PadsDecayState)
    assert "padding" in failures(Subject(spoilt.cls, spoilt.card, width=8, dtype=torch.float32))


def test_cache_that_appends_blindly_is_caught() -> None:
    with pytest.raises(ContractError, match="without gradients: the continuation from an older state"):
        check_value(subject(d.AppendsBlindly))


def test_crash_is_a_finding_with_its_place() -> None:
    outcome = failures(subject(d.Crashes))["split"]
    assert outcome.message.startswith("raised RuntimeError: out of order (defects.py, line")


def test_output_alone_is_refused_in_words() -> None:
    assert "must return (output, state)" in failures(subject(d.Returns))["shapes"].message


def test_one_check_called_alone_raises() -> None:
    check_causality(subject(d.Leaky))
    with pytest.raises(ContractError, match="future leaks"):
        check_causality(subject(d.LeaksFuture))


def test_check_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    failures(subject(d.Dropout, "causal", "streaming", "stochastic"))
    assert torch.equal(before, torch.get_rng_state())


def test_class_in_a_file_is_checked_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_ADDED", {})
    source = Path(d.__file__).read_text("utf-8").replace("class Leaky(Mixer)", "class Mine(Mixer)").replace("(Leaky)", "(Mine)")
    (tmp_path / "mine.py").write_text(source, "utf-8")
    outcomes = check(f"{tmp_path / 'mine.py'}:Mine")
    assert [o.name for o in outcomes if o.status == "failed"] == []
    assert next(o for o in outcomes if o.name == "state_bytes").status == "skipped"  # no card, no promise


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(UnknownNameError):
        check("no_such_method")
    with pytest.raises(UnknownNameError):
        check("no.such.module:Class")
    with pytest.raises(CardError, match="no contract"):
        contract("Nothing")
