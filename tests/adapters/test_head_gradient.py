"""Heads whose gradients differ in how exact they are, and the contract that they keep: each planted defect is caught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from instar import catalogue
from instar.cards import Cost
from instar.checks import Subject, contract, run
from instar.errors import ShapeError
from instar.interfaces import AttentionHead
from instar.lab.limits.in_blocks import InBlocks
from instar.lab.limits.measuring import draw, error, kept_bytes
from instar.lab.limits.polynomial_head import PolynomialHead
from instar.lab.limits.random_features_head import RandomFeaturesHead
from instar.lab.limits.written_out import WrittenOut
from instar.problems.head_gradient import HeadGradientProblem


class Plain(AttentionHead):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return WrittenOut()(q, k, v)


class Forgets(Plain):
    def __init__(self, *, share: float = 1.0) -> None:
        pass


class NotNormalised(Plain):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).exp() @ v


class ReadsPlaces(Plain):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().__call__(q, k + 0.1 * torch.arange(k.shape[1]).to(k)[:, None], v)


class CutsGradient(Plain):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().__call__(q, k.detach(), v)


class MixesHeads(Plain):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().__call__(q + q.mean(0), k, v)


class WrongGradient(Plain):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().__call__(0.9 * q + 0.1 * q.detach(), k, v)


class FarAtSmallScores(Plain):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().__call__(q, k, v) + 0.5 * (v[:, :1] - v.mean(1, keepdim=True))


class TakesAnything(Plain):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if k.shape[1] != v.shape[1] or q.dtype != k.dtype or q.shape[-1] != k.shape[-1]:
            return v.new_zeros(q.shape[0], q.shape[1], v.shape[2])
        return super().__call__(q, k, v)


class InFloat32(Plain):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().__call__(q.float(), k.float(), v.float())


def subject(cls: type, *tags: str, cost: Cost | None = None) -> Subject:
    from dataclasses import replace

    card = replace(catalogue.minimal(cls, Path(f"{cls.__name__.lower()}.py")), tags=list(tags), cost=cost)
    return Subject(cls, card)


@pytest.mark.parametrize(
    ("given", "name", "words"),
    [
        (subject(Forgets), "arguments", "keep the argument share"),
        (subject(InFloat32), "shapes", "received torch.float32"),
        (subject(NotNormalised), "weights", "with equal values"),
        (subject(ReadsPlaces), "weights", "in another order"),
        (subject(CutsGradient), "gradients", "of k is missing"),
        (subject(MixesHeads), "gradients", "when the head is alone"),
        (subject(WrongGradient, "exact"), "exact", "in the gradient of q"),
        (subject(NotNormalised, "exact"), "exact", "from softmax"),
        (subject(FarAtSmallScores), "limit", "Relative errors"),
        (subject(TakesAnything), "refusals", "must be refused"),
        (subject(Plain, cost=Cost("0", "4 * L * M")), "costs", "state is"),
    ],
)
def test_defects_are_caught(given: Subject, name: str, words: str) -> None:
    found = {o.name: o for o in (run(check, given) for check in contract("AttentionHead"))}
    assert found[name].status == "failed"
    assert words in found[name].message


def test_a_sound_head_passes() -> None:
    assert all(run(check, subject(Plain, "exact")).status != "failed" for check in contract("AttentionHead"))


def test_errors_fall_with_the_degree_and_rise_with_the_norm() -> None:
    given = draw(256, 3, 2, torch.Generator().manual_seed(0))
    for size in (0.5, 2.0):
        errors = [error(PolynomialHead(degree=degree), given, size) for degree in (2, 4, 8)]
        assert errors[0] > errors[1] > errors[2]
    assert error(PolynomialHead(), given, 0.5) < error(PolynomialHead(), given, 2.0)
    assert error(InBlocks(block=7), given, 2.0) < 1e-12
    assert error(PolynomialHead(degree=2), given, 8.0) > 0.5
    assert error(PolynomialHead(degree=2), given, 40.0) == 1.0  # refused: as bad as no gradient
    features = [error(RandomFeaturesHead(features=m), given, 0.5) for m in (16, 4096)]
    assert features[1] < features[0]
    same = draw(256, 3, 2, torch.Generator().manual_seed(0))
    assert torch.equal(same.q, given.q)
    assert float(given.q.abs().max()) == float(given.k.abs().max()) == 1.0


def test_bytes_that_are_kept() -> None:
    q, k, v = (torch.randn(1, 300, 4).requires_grad_() for _ in range(3))
    assert kept_bytes(lambda: WrittenOut()(q, k, v)) > 4 * 300 * 300
    assert kept_bytes(lambda: InBlocks()(q, k, v)) < 4 * 300 * 30
    assert kept_bytes(lambda: q.detach() @ k.detach().mT) == 0


def test_the_problem_scores_every_head_of_the_seed() -> None:
    problem = HeadGradientProblem(tokens=64, test_heads=3)
    one, other = problem.load(0), problem.load(1)
    assert one.sha256 == other.sha256
    assert not torch.equal(one.test[0].q, other.test[0].q)
    found = problem.evaluate(PolynomialHead(), one.test)
    assert {name: len(items.totals) for name, items in found.items()} == {f"error@{size}": 3 for size in ("0.5", "1", "2", "3")}
    exact: dict[str, Any] = problem.evaluate(WrittenOut(), one.test)
    assert all(max(items.totals) < 1e-12 for items in exact.values())
    with pytest.raises(ShapeError, match="tokens"):
        HeadGradientProblem(tokens=1)


def test_bad_arguments() -> None:
    for wrong in (lambda: PolynomialHead(degree=3), lambda: InBlocks(block=0), lambda: RandomFeaturesHead(features=0)):
        with pytest.raises(ShapeError):
            wrong()
