"""Growing in stages: all blocks are scored, spikes are of growths, budgets of controls are as said, a stopped run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from instar.bench import run
from instar.errors import ShapeError
from instar.growth.from_scratch import FromScratch
from instar.problems.grow_text import GrowTextProblem

SMALL: dict[str, Any] = {"length": 32, "batch": 4, "width": 16, "depth": 1, "heads": 2, "n": 16, "hidden": 32, "test_blocks": 3}


def made(slug: str, given: dict[str, Any] | None = None, **arguments: Any) -> tuple[GrowTextProblem, Any, Any]:
    problem = GrowTextProblem(**{**SMALL, **(given or {})})
    data = problem.load(0)
    return problem, data, run.lift(problem, slug, arguments, data, 0)


def steps_of(slug: str, steps: int = 30, given: dict[str, Any] | None = None, **arguments: Any) -> tuple[list[int], Any]:
    problem, data, subject = made(slug, given, **arguments)
    seen: list[int] = []
    problem.fit(subject, data.train, steps=steps, seed=0, monitor=lambda step, _: seen.append(step))
    return seen, subject


def test_stages_spikes_and_scores() -> None:
    problem, data, subject = made("tokenformer")
    problem.fit(subject, data.train, steps=40, seed=0)
    assert subject.spikes == [0.0, 0.0]
    assert subject.model.blocks[0].feed.counts == [32, 32, 64]
    assert (subject.after_base.blocks[0].feed.n, subject.after_growth.blocks[0].feed.n) == (32, 128)
    found = problem.evaluate(subject, data.test)
    for name in ("base", "grown", "kept"):
        assert len(found[f"bits_per_byte@{name}"].totals) == len(data.test.first)
    assert len(found["bits_per_byte@second"].totals) == len(data.test.second)
    assert found["bits_per_byte@grown"].value < found["bits_per_byte@base"].value
    assert found["spike"].value == 0.0


def test_what_grew_from_nothing_has_no_base() -> None:
    problem, data, subject = made("from_scratch")
    problem.fit(subject, data.train, steps=20, seed=0)
    found = problem.evaluate(subject, data.test)
    assert "bits_per_byte@base" not in found
    assert {"bits_per_byte@grown", "bits_per_byte@second", "bits_per_byte@kept"} <= found.keys()


def test_random_rows_spike_and_lossless_growth_does_not() -> None:
    spikes = {
        address: max(abs(s) for s in steps_of(slug, **given)[1].spikes)
        for address, slug, given in (
            ("random", "tokenformer", {"keys": "normal", "tau": "grow"}),
            ("lemon", "lemon", {}),
            ("zero_ffn", "zero_ffn", {}),
        )
    }
    assert spikes["random"] > 1e-4
    assert spikes["lemon"] < 1e-6
    assert spikes["zero_ffn"] < 1e-6


@pytest.mark.parametrize("architecture", ["tokenformer", "decoder"])
def test_controls_take_the_steps_that_their_budget_says(architecture: str) -> None:
    grown = "tokenformer" if architecture == "tokenformer" else "zero_ffn"
    assert steps_of(grown, 40, {"share": 0.1})[0] == list(range(1, 41))

    def taken(slug: str, budget: str) -> int:
        return len(steps_of(slug, 40, {"share": 0.1}, architecture=architecture, budget=budget)[0])

    assert taken("continued_base", "steps") == 40
    assert taken("from_scratch", "extra") == 14 + 4  # 36 steps on the first text, 22 of them the base's
    assert taken("from_scratch", "steps") == 40
    assert 18 < taken("from_scratch", "flops") < 40
    assert taken("continued_base", "flops") > 40


def test_equal_operations_are_equal_operations() -> None:
    problem = GrowTextProblem()
    flops = problem._flops(FromScratch())
    chain = problem._stages(FromScratch(budget="flops"), 630)
    stages = [378, 126, 126]
    assert chain[0][0] * flops[-1] == pytest.approx(sum(a * b for a, b in zip(stages, flops, strict=True)), rel=0.01)


def test_the_last_size_is_what_costs_count() -> None:
    problem, _, subject = made("lemon", {"plan": "width=2x,depth=2x"})
    costs = problem.costs(subject)
    assert subject.model.width == 16  # the subject has not grown
    assert costs["state_bytes"] == 8 * costs["parameters"]
    assert costs["peak_train_bytes"] > 16 * costs["parameters"]
    model = problem._grown(subject)
    assert (model.width, model.depth) == (64, 4)
    assert costs["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("slug", "arguments"), [("tokenformer", {"tau": "anneal"}), ("bert2bert", {}), ("from_scratch", {})])
@pytest.mark.parametrize("stop", [5, 17, 29])
def test_a_stopped_run_ends_in_the_same_bits(slug: str, arguments: dict[str, Any], stop: int, tmp_path: Path) -> None:
    problem, data, whole = made(slug, **arguments)
    seen: list[int] = []
    problem.fit(whole, data.train, steps=30, seed=0, monitor=lambda step, _: seen.append(step))
    stop = min(stop, seen[-1] - 1)
    problem.fit(made(slug, **arguments)[2], data.train, steps=30, seed=0, monitor=lambda s, _: s == stop, checkpoint=tmp_path)
    resumed = made(slug, **arguments)[2]
    again: list[int] = []
    problem.fit(resumed, data.train, steps=30, seed=0, monitor=lambda step, _: again.append(step), checkpoint=tmp_path)
    assert again == [step for step in seen if step > stop]
    assert resumed.spikes == whole.spikes
    for a, b in ((whole.model, resumed.model), (whole.after_growth, resumed.after_growth)):
        assert all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


def test_settings_that_make_no_sense() -> None:
    for given in ({"stages": 0}, {"share": 1.0}, {"base": 0.0}, {"growth_lr": 0.0}, {"n": 0}):
        with pytest.raises(ShapeError, match="grow_text"):
            GrowTextProblem(**given)  # type: ignore[arg-type]
