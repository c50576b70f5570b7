"""Problems of predictors: every item is scored by number of steps, and predictors learn them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from instar import catalogue
from instar.bench import costs, run
from instar.catalogue import Build
from instar.errors import DataError, MissingExtraError, ShapeError
from instar.interfaces import Predictor, Trace
from instar.problems.denoise import DenoiseProblem
from instar.problems.loop_regression import LoopRegressionProblem
from instar.problems.next_state import NextStateProblem
from instar.problems.text import BOS, IGNORED, preceding
from instar.problems.think_text import ThinkTextProblem


def lifted(problem: Any, slug: str, **arguments: Any) -> tuple[Any, Any]:
    data = problem.load(0)
    return data, run.lift(problem, slug, arguments, data, 0)


@pytest.mark.parametrize(("slug", "arguments"), [("ebt", {"alpha": 20.0}), ("transformer_pp", {})])
def test_text_is_scored_by_steps_and_learnt(slug: str, arguments: dict[str, Any]) -> None:
    problem = ThinkTextProblem(width=16, depth=1, heads=2, batch=8, length=16, test_blocks=2)
    data, model = lifted(problem, slug, **arguments)
    assert costs.measure(problem, model, data, 0) == {"parameters": sum(p.numel() for p in model.parameters())}
    losses: list[float] = []
    problem.fit(model, data.train, steps=12, seed=0, monitor=lambda step, loss: losses.append(loss))
    assert sum(losses[-3:]) < sum(losses[:3])
    found = problem.evaluate(model, data.test)
    assert list(found) == [f"bits_per_byte@{n}" for n in (1, 2, 3, 6)]
    for items in found.values():
        assert len(items.totals) == len(data.test)
        assert sum(items.weights) == data.facts["test_bytes"]
    if slug == "transformer_pp":
        assert found["bits_per_byte@1"].totals == found["bits_per_byte@6"].totals


class Scaled(Predictor):
    """A stranger's predictor, which has what the interface asks for and nothing else."""

    def __init__(self, width: int = 4, **sizes: Any) -> None:
        super().__init__()
        self.width, self.steps, self.sizes = width, 1, sizes
        self.by = torch.nn.Parameter(torch.ones(1))

    def predict(self, x: Tensor, *, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Trace]:
        return self.by.detach() * x, Trace(torch.zeros(len(x), dtype=torch.int64))

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        return (self.by * x - target).square().mean()

    def example(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@pytest.mark.parametrize(("problem", "slug"), [(DenoiseProblem(batch=4), "recursed_denoiser"), (NextStateProblem(), "tam")])
def test_a_strangers_predictor_is_timed(problem: Any, slug: str) -> None:
    try:
        data = problem.load(0)
    except (DataError, MissingExtraError) as error:  # what is not there, and nothing that is wrong
        pytest.skip(str(error))
    subject = problem.subject(Build(catalogue.method(slug), Scaled, {}), data, 0)
    for workload in problem.workloads():
        workload.prepare(subject)()
    assert subject.by.grad is not None


def test_what_precedes_a_target() -> None:
    targets = torch.tensor([[5, 6, 7], [8, IGNORED, IGNORED]])
    assert preceding(targets).tolist() == [[BOS, 5, 6], [BOS, 8, BOS]]


@pytest.mark.parametrize(("slug", "arguments"), [("looped", {"pre": 1, "post": 1, "steps": 3, "window": 2}), ("unlooped", {})])
def test_regression_in_context(slug: str, arguments: dict[str, Any]) -> None:
    problem = LoopRegressionProblem(width=16, heads=2, batch=16)
    data, model = lifted(problem, slug, **arguments)
    before = problem.evaluate(model, data.test)
    problem.fit(model, data.train, steps=40, seed=0)
    after = problem.evaluate(model, data.test)
    assert after["error@T"].value < before["error@T"].value
    assert len(after["last_error@3T"].totals) == 256
    assert (after["error@T"].totals == after["error@3T"].totals) == (slug == "unlooped")


def test_the_representation_is_fixed_and_features_have_variance_one() -> None:
    one, two = LoopRegressionProblem(), LoopRegressionProblem()
    x = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(9))
    assert torch.equal(one.represent(x), two.represent(x))
    assert torch.allclose(one.represent(x).var(0), torch.ones(4), atol=0.05)
    tokens, targets = one.prompts(3, torch.Generator().manual_seed(0))
    assert torch.equal(tokens[:, 1::2, 0], targets[:, ::2, 0])
    assert bool(targets[:, 1::2].isnan().all())
    phi = one.represent(tokens[:, ::2])
    weights = torch.linalg.lstsq(phi, targets[:, ::2]).solution
    assert torch.allclose(phi @ weights, targets[:, ::2], atol=1e-4)  # least squares on Φ(x) has no error


def test_a_predictor_of_another_kind_is_refused() -> None:
    with pytest.raises(DataError, match="looped reads vectors"):
        lifted(ThinkTextProblem(width=16, test_blocks=1), "looped")
    with pytest.raises(DataError, match="ebt reads tokens"):
        lifted(LoopRegressionProblem(width=16), "ebt")
    with pytest.raises(ShapeError):
        LoopRegressionProblem(examples=1)


@pytest.mark.parametrize(("slug", "arguments"), [("ebwm", {"alpha": 100.0, "start": "last"}), ("tam", {})])
def test_the_next_state_is_learnt_from_a_table(tmp_path: Path, slug: str, arguments: dict[str, Any]) -> None:
    lines = ["unique_id,ds,y,z,label"]
    for name in range(24):
        for t in range(30):
            angle = 0.7 * t + name
            lines.append(f"s{name},{t},{math.sin(angle)},{math.cos(angle)},{'ab'[name % 2]}")
    (tmp_path / "waves.csv").write_text("\n".join(lines) + "\n")
    problem = NextStateProblem(data=str(tmp_path / "waves.csv"), context=6, width=32, depth=1, heads=2, lr=3e-3)
    data, model = lifted(problem, slug, **arguments)
    assert data.train.states.shape[1:] == (7, 2)
    before = problem.evaluate(model, data.test)
    problem.fit(model, data.train, steps=80, seed=0)
    after = problem.evaluate(model, data.test)
    assert after["smooth_l1@2"].value < before["smooth_l1@2"].value
    assert after["smooth_l1@2"].weights == [4.0] * data.facts["test_items"]  # 30 states, 7 a window
    assert len(data.test) == 4 * data.facts["test_items"]
    last = torch.nn.functional.smooth_l1_loss(data.test.states[:, :-1], data.test.states[:, 1:])
    assert after["of_persistence@4"].value == pytest.approx(after["smooth_l1@4"].value / float(last), rel=1e-5)
    assert after["of_persistence@2"].value < 1
    with pytest.raises(DataError, match="lower context"):
        NextStateProblem(data=str(tmp_path / "waves.csv"), context=40).load(0)
