"""Boolean tasks: truth tables, rates, teaching, and learners that are exact on their classes."""

from __future__ import annotations

import itertools

import pytest
import torch

from instar.errors import ShapeError
from instar.lab.consistent_vote import ConsistentVote
from instar.lab.elimination import Elimination
from instar.lab.icl_boolean import FAMILIES, TAUGHT, BooleanSampler, Functions, teaching
from instar.lab.logistic_regression import LogisticRegression
from instar.lab.majority_label import MajorityLabel
from instar.lab.nearest_neighbours import NearestNeighbours
from instar.lab.parity_elimination import ParityElimination
from instar.lab.perceptron import Perceptron
from instar.lab.small_network import SmallNetwork


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


def test_elimination_is_the_vote_of_all_parities() -> None:
    d = BooleanSampler(7, "parity").draw(60, 20, stream())
    said = ParityElimination().prefixes(d.xs, d.ys)
    assert torch.equal(said, ConsistentVote(family="parity").prefixes(d.xs, d.ys))
    assert bool((said == d.ys)[said != 0].all())
    noisy = BooleanSampler(7, "parity", noise=0.3).draw(60, 20, stream())
    assert torch.equal(
        ParityElimination().prefixes(noisy.xs, noisy.ys), ConsistentVote(family="parity").prefixes(noisy.xs, noisy.ys)
    )


def test_elimination_needs_as_many_independent_rows_as_bits() -> None:
    D = 40  # 2^40 subsets: nobody enumerates them
    functions = BooleanSampler(D, "parity").functions(5, stream())
    triangle = torch.where(torch.ones(D, D).tril() > 0, 1.0, -1.0).expand(5, -1, -1)
    asked = torch.where(torch.rand(5, 200, D, generator=stream(1)) < 0.5, 1.0, -1.0)
    found = ParityElimination().predict(triangle, functions.labels(triangle), asked)
    assert torch.equal(found, functions.labels(asked))
    fewer = ParityElimination().predict(triangle[:, :-1], functions.labels(triangle[:, :-1]), asked)
    ends = asked[..., -1] > 0  # the last bit alone stays unknown
    assert torch.equal(fewer == 0, ends)


def test_refitted_learners() -> None:
    d = BooleanSampler(6, "halfspace").draw(40, 25, stream())
    learners = (Perceptron(passes=200), LogisticRegression(), SmallNetwork())
    for learner in learners:
        said = learner.prefixes(d.xs, d.ys)
        assert said.shape == d.ys.shape
        assert bool((said[:, 0] == 0).all())
        assert float((said.sign() == d.ys)[:, -5:].double().mean()) > 0.8, learner
    halves = [torch.cat([learner.predict(d.xs[a], d.ys[a], d.xs[a]) for a in (slice(20), slice(20, 40))]) for learner in learners]
    for learner, half in zip(learners, halves, strict=True):
        torch.testing.assert_close(half, learner.predict(d.xs, d.ys, d.xs), atol=1e-5, rtol=1e-4)
    separated = Perceptron(passes=2000).predict(d.xs, d.ys, d.xs)  # halfspaces of integers: it ends without mistakes
    assert torch.equal(separated.sign(), d.ys)
    for wrong in (lambda: Perceptron(passes=0), lambda: LogisticRegression(c=0.0), lambda: SmallNetwork(steps=0)):
        with pytest.raises(ShapeError):
            wrong()


def test_logistic_regression_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression as Reference

    d = BooleanSampler(6, "dnf").draw(10, 40, stream())
    asked = BooleanSampler(6, "dnf").draw(10, 15, stream(1)).xs
    found = LogisticRegression(c=0.7, iterations=100).predict(d.xs, d.ys, asked)
    for b in range(10):
        if len(set(d.ys[b].tolist())) == 2:
            fitted = Reference(C=0.7, tol=1e-10, max_iter=1000, solver="newton-cholesky").fit(d.xs[b].numpy(), d.ys[b].numpy())
            assert found[b].tolist() == pytest.approx(fitted.decision_function(asked[b].numpy()).tolist(), abs=1e-4)


def test_positives_are_as_many_as_asked_for() -> None:
    often = BooleanSampler(10, "conjunction", positives=0.9).draw(200, 30, stream())
    assert float((often.ys > 0).double().mean()) > 0.85
    never = BooleanSampler(10, "disjunction", positives=0.0).draw(200, 30, stream())
    assert torch.equal(never.functions.labels(never.xs), never.ys)
    assert float((never.ys > 0).double().mean()) > 0.7
    with pytest.raises(ShapeError, match="for parity"):
        BooleanSampler(10, "parity", positives=0.5)


def test_bad_tasks() -> None:
    with pytest.raises(ShapeError, match="known family"):
        BooleanSampler(5, "xor")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="not of parity"):
        BooleanSampler(5, "parity", teaching=0.5)
