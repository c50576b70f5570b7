"""Byte-level language modelling: every byte scored once, windows that start from nothing, costs that agree with the counter."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from instar import catalogue
from instar.bench.run import lift
from instar.errors import DataError, ShapeError
from instar.problems import text as module
from instar.problems.text import TextProblem

SMALL = {"length": 32, "width": 16, "depth": 1, "heads": 2, "batch": 4, "test_blocks": 3}


def subject(problem: TextProblem, address: str = "gru") -> module.Subject:
    found = catalogue.parse(address)
    return lift(problem, found.slug, found.arguments, problem.load(0), 0)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def problem() -> TextProblem:
    return TextProblem(**SMALL)  # type: ignore[arg-type]


def test_every_byte_is_scored_once_at_any_batch_size(problem: TextProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = problem.load(0), subject(problem)
    found = problem.evaluate(model, data.test)
    assert {m.id for m in catalogue.problem("text").metrics if m.kind == "quality"} == set(found)
    lengths = [len(data.test[i]) for i in range(len(data.test))]
    for name, items in found.items():
        if name.startswith("bits_per_byte"):
            assert list(items.weights) == lengths
    monkeypatch.setattr(module, "_EVALUATION_TOKENS", 100)
    for name, items in problem.evaluate(model, data.test).items():
        np.testing.assert_allclose(items.totals, found[name].totals, rtol=1e-5)


def test_places_beyond_the_training_length_are_told_apart(problem: TextProblem) -> None:
    data, model = problem.load(0), subject(problem)
    found, T = problem.evaluate(model, data.test), problem.length
    early, late = (found[f"position_bits@{name}"] for name in ("early", "late"))
    long = [length for length in (len(data.test[i]) for i in range(len(data.test))) if length > T]
    places = [np.arange(length) % (4 * T) for length in long]
    assert list(early.weights) == [np.sum((place >= T // 2) & (place < T)) for place in places]
    assert list(late.weights) == [np.sum(place >= T) for place in places]
    assert sum(early.totals) + sum(late.totals) < sum(found["bits_per_byte@4T"].totals)


def test_bits_are_the_code_length_of_the_bytes(problem: TextProblem) -> None:
    """A model whose logits are all equal needs log2(257) bits for every byte."""
    data, model = problem.load(0), subject(problem)
    torch.nn.init.zeros_(model.embedding.weight)
    for items in problem.evaluate(model, data.test).values():
        assert items.value == pytest.approx(math.log2(257))


@pytest.mark.parametrize("address", ["softmax", "gla", "gru"])
def test_a_window_is_scored_as_if_alone(address: str, problem: TextProblem) -> None:
    data, model = problem.load(0), subject(problem, address).eval()
    block = data.test[0]
    tokens = torch.tensor([256, *block[:31].tolist()])[None]
    with torch.no_grad():
        logits = torch.log_softmax(model(tokens)[0], -1)[0]
    alone = -sum(float(logits[i, byte]) for i, byte in enumerate(block[:32].tolist())) / math.log(2)
    short = module.Blocks(data.test.sources, data.test.source[:1], data.test.offset[:1], np.array([32]))
    assert problem.evaluate(model, short)["bits_per_byte@T"].totals[0] == pytest.approx(alone, rel=1e-5)


def test_training_learns_and_depends_on_the_seed_alone(problem: TextProblem) -> None:
    data = problem.load(0)
    first, second, other = subject(problem), subject(problem), subject(problem)
    losses: list[float] = []
    problem.fit(first, data.train, steps=60, seed=1, monitor=lambda _, value: losses.append(value))
    problem.fit(second, data.train, steps=60, seed=1)
    problem.fit(other, data.train, steps=60, seed=2)
    assert losses[-1] < losses[0] - 1
    assert torch.equal(first.embedding.weight, second.embedding.weight)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def test_the_closed_form_is_what_the_counter_counts() -> None:
    """The counter sees every operation of the GRU's reference but element-wise ones; the closed form may not differ by more."""
    problem = TextProblem(**SMALL)  # type: ignore[arg-type]
    model = subject(problem, "gru")
    for block in model.blocks:
        block.mixer.forward = block.mixer.reference  # type: ignore[union-attr,method-assign]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 40, dtype=torch.int64))
    assert model.forward_flops(40) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_costs_name_every_metric_of_the_card(problem: TextProblem) -> None:
    costs = problem.costs(subject(problem, "gla"))
    wanted = {m.id for m in catalogue.problem("text").metrics if m.kind == "cost"}
    assert wanted == {*costs, "parameters", "peak_train_bytes"}
    assert costs["state_bytes@256"] == costs["state_bytes@16384"]
    softmax = problem.costs(subject(problem, "softmax"))
    assert softmax["state_bytes@16384"] > 10 * softmax["state_bytes@256"]
    assert {w.metric for w in problem.workloads()} == {m.id for m in catalogue.problem("text").metrics if m.kind == "time"}


def test_workloads_run(problem: TextProblem) -> None:
    model = subject(problem)
    for workload in problem.workloads():
        if "@" not in workload.metric or workload.metric.endswith("@256"):
            workload.prepare(model)()


@pytest.mark.parametrize(("size", "words"), [(0, "empty"), (200, "too small"), (9000, "too small")])
def test_too_little_text_is_refused(size: int, words: str, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("a line of text\n" * (size // 15))
    with pytest.raises(DataError, match=words):
        TextProblem(data=str(path)).load(0)


def test_bad_settings() -> None:
    for bad in ({"length": 0}, {"length": 2000}, {"batch": 0}):
        with pytest.raises(ShapeError):
            TextProblem(**bad)  # type: ignore[arg-type]
