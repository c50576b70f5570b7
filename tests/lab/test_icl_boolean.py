"""Boolean tasks: truth tables, rates, teaching, and learners that are exact on their classes."""

from __future__ import annotations

import itertools

import pytest
import torch

from instar.errors import ShapeError
from instar.lab.consistent_vote import ConsistentVote
from instar.lab.elimination import Elimination
from instar.lab.icl_boolean import FAMILIES, TAUGHT, BooleanSampler, Functions, teaching
from instar.lab.majority_label import MajorityLabel
from instar.lab.nearest_neighbours import NearestNeighbours


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_truth_tables() -> None:
    table = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5)))
    for family in [f for f in FAMILIES if f != "nearest_neighbour"]:
        functions = BooleanSampler(5, family).functions(40, stream())
        found = functions.labels(table.expand(40, -1, -1))
        for b, w in enumerate(functions.weights.tolist()):
            for x, y in zip(table.tolist(), found[b].tolist(), strict=True):
                literals = [[x[j] == v for j, v in enumerate(term) if v] for term in w]
                total = sum(a * v for a, v in zip(x, w[0], strict=True))
                wanted = {
                    "conjunction": lambda: all(literals[0]),  # noqa: B023
                    "monotone_conjunction": lambda: all(literals[0]),  # noqa: B023
                    "dnf": lambda: any(map(all, literals)),  # noqa: B023
                    "disjunction": lambda: any(literals[0]),  # noqa: B023
                    "sparse_disjunction": lambda: any(literals[0]),  # noqa: B023
                    "cnf": lambda: all(map(any, literals)),  # noqa: B023
                    "parity": lambda: sum(literals[0]) % 2 == 1,  # noqa: B023
                    "sparse_parity": lambda: sum(literals[0]) % 2 == 1,  # noqa: B023
                }.get(family, lambda: total > float(functions.threshold[b]))()  # noqa: B023
                assert (y > 0) == wanted, (family, w, x)


def test_rates() -> None:
    for family, low, high in (("conjunction", 0.3, 0.55), ("disjunction", 0.45, 0.7), ("parity", 0.45, 0.55)):
        ys = BooleanSampler(10, family).draw(400, 30, stream()).ys  # type: ignore[arg-type]
        assert low < float((ys > 0).double().mean()) < high
    d = BooleanSampler(10, "majority", noise=0.25).draw(400, 30, stream())
    assert float((d.ys != d.functions.labels(d.xs)).double().mean()) == pytest.approx(0.25, abs=0.02)


def test_de_morgan() -> None:
    d = BooleanSampler(6, "conjunction").draw(50, 20, stream())
    mirrored = Functions("disjunction", -d.functions.weights, d.functions.threshold)
    assert torch.equal(mirrored.labels(d.xs), -d.ys)
    said = Elimination().prefixes(d.xs, d.ys)
    assert torch.equal(Elimination(disjunction=True).prefixes(d.xs, -d.ys), -said)


def test_teaching_leaves_one_function() -> None:
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)))
    for w in every:
        lesson = teaching("monotone_conjunction", w[None])
        assert len(lesson) == int(w.sum()) + 1
        truth = Functions("monotone_conjunction", w[None, None], torch.zeros(1)).labels(lesson[None])
        all_ = Functions("monotone_conjunction", every.unsqueeze(1), torch.zeros(32)).labels(lesson.expand(32, -1, -1))
        assert (all_ == truth).all(1).sum() == 1
    signed = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=4)))
    for w in signed:
        lesson = teaching("conjunction", w[None])
        assert len(lesson) == int(w.abs().sum()) + 2
        truth = Functions("conjunction", w[None, None], torch.zeros(1)).labels(lesson[None])
        all_ = Functions("conjunction", signed.unsqueeze(1), torch.zeros(81)).labels(lesson.expand(81, -1, -1))
        assert (all_ == truth).all(1).sum() == 1
    d = BooleanSampler(10, "conjunction", teaching=1.0).draw(100, 30, stream())
    right = Elimination().prefixes(d.xs, d.ys) == d.ys
    after = torch.arange(30) >= d.taught.unsqueeze(1)
    assert bool(right[after].all())
    with pytest.raises(ShapeError, match="cannot show"):
        BooleanSampler(10, "dnf", teaching=1.0).draw(100, 4, stream())
    assert set(TAUGHT) < set(FAMILIES)


def test_exact_learners() -> None:
    d = BooleanSampler(8, "conjunction").draw(200, 30, stream())
    said = Elimination().prefixes(d.xs, d.ys)
    assert bool((said == d.ys)[d.ys < 0].all())
    assert float((said == d.ys)[:, -1].double().mean()) > 0.9
    for family in ("sparse_parity", "parity", "sparse_disjunction"):
        d = BooleanSampler(6, family).draw(50, 40, stream())  # type: ignore[arg-type]
        learner = ConsistentVote(family=family)
        right = (learner.prefixes(d.xs, d.ys).sign() == d.ys).double()
        assert float(right[:, -10:].mean()) > 0.98
        known = learner.predict(d.xs, d.ys, d.xs)
        assert torch.equal(known, d.ys)
    with pytest.raises(ShapeError, match="enumeration"):
        ConsistentVote(family="parity").predict(torch.ones(1, 2, 20), torch.ones(1, 2), torch.ones(1, 1, 20))


def test_nearest_neighbours_solve_their_task() -> None:
    d = BooleanSampler(10, "nearest_neighbour").draw(50, 40, stream())
    said = NearestNeighbours(k=1).prefixes(d.xs, d.ys)
    assert bool((said == d.ys)[:, 10:].all())
    null = MajorityLabel().prefixes(d.xs, d.ys).sign() == d.ys
    assert float(null[:, 10:].double().mean()) < 0.8


def test_bad_tasks() -> None:
    with pytest.raises(ShapeError, match="known family"):
        BooleanSampler(5, "xor")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="not of parity"):
        BooleanSampler(5, "parity", teaching=0.5)
