"""Bags: parts that no two seeds of a round share, areas that are those of the ROC curve, training that finds the one instance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from instar import catalogue
from instar.bench.run import lift
from instar.data import datasets
from instar.errors import DataError, ShapeError
from instar.interfaces import Data
from instar.problems.bags import BagClassifier, BagsProblem, area


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bag is positive where one instance in it, of two to eight, lies far out in a direction; some values are missing."""
    draw = np.random.default_rng(0)
    lines = ["bag,label,a,b,c"]
    for i in range(90):
        rows = draw.normal(size=(draw.integers(2, 9), 3)) * [1, 1e3, 1]
        if i % 3 == 0:
            rows[draw.integers(len(rows)), 0] += 6
        lines += [f"m{i},{'yes' if i % 3 == 0 else 'no'},{a},{b},{'' if c > 2 else c}" for a, b, c in rows]
    path = tmp_path_factory.mktemp("bags") / "own.csv"
    path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def problem(path: Path) -> BagsProblem:
    return BagsProblem(data=str(path), width=16, lr=1e-2)


def made(problem: BagsProblem, data: Data, address: str) -> BagClassifier:
    torch.manual_seed(0)
    method = catalogue.parse(address)
    subject = lift(problem, method.card.slug, method.arguments, data, 0)
    assert isinstance(subject, BagClassifier)
    return subject


def trained(problem: BagsProblem, data: Data, address: str, steps: int) -> BagClassifier:
    subject = made(problem, data, address)
    problem.fit(subject, data.train, steps=steps, seed=0)
    return subject


def test_each_bag_is_tested_once_in_a_round_of_seeds_and_the_data_are_the_same(problem: BagsProblem) -> None:
    rounds = [problem.load(seed) for seed in range(10)]
    assert len({data.sha256 for data in rounds}) == 1
    assert [len(data.test) for data in rounds] == [9] * 10
    assert [int(data.test.labels.sum()) for data in rounds] == [3] * 10
    assert {len(data.train) + len(data.valid) + len(data.test) for data in rounds} == {90}
    raw = [bag.tobytes() for data in rounds[:1] for part in (data.train, data.valid, data.test) for bag in part.instances]
    assert len(set(raw)) == 90
    first = [tuple(data.test.instances[0].shape) for data in rounds]
    again = [tuple(problem.load(seed).test.instances[0].shape) for seed in range(10, 20)]
    assert first != again  # another shuffle
    assert BagsProblem(data=problem.data, folds=5).load(0).sha256 != rounds[0].sha256


def test_features_are_normalised_on_training_instances_and_gaps_are_the_mean(problem: BagsProblem) -> None:
    data = problem.load(0)
    seen = np.concatenate(data.train.instances)
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(seen[:, :2].std(0), 1, atol=1e-5)
    assert data.facts["missing_values"] > 1
    assert abs(np.concatenate(data.test.instances)[:, 1].mean()) > 1e-3


@pytest.mark.parametrize("address", ["max_pooling", "attention_pooling:gated", "hopfield_pooling"])
def test_training_finds_the_instance_that_decides(problem: BagsProblem, address: str) -> None:
    data = problem.load(0)
    found = problem.evaluate(trained(problem, data, address, 150), data.test)
    assert found["auc"].value > 0.9
    assert found["accuracy"].value > 0.8


def test_the_batch_of_evaluation_does_not_matter(problem: BagsProblem, path: Path) -> None:
    data = problem.load(3)
    subject = trained(problem, data, "hopfield_pooling:refined", 5)
    one_by_one = BagsProblem(data=str(path), batch=1)
    for name, items in problem.evaluate(subject, data.test).items():
        np.testing.assert_allclose(items.totals, one_by_one.evaluate(subject, data.test)[name].totals)


def test_leaving_out_instances_keeps_one_and_changes_training(path: Path) -> None:
    losses: dict[float, list[float]] = {0.0: [], 0.99: []}
    for drop, seen in losses.items():
        problem = BagsProblem(data=str(path), width=16, drop=drop)
        data = problem.load(0)
        subject = made(problem, data, "mean_pooling")

        def told(step: int, loss: float, seen: list[float] = seen) -> None:
            seen.append(loss)

        problem.fit(subject, data.train, steps=6, seed=0, monitor=told)
    assert np.isfinite(list(losses.values())).all()
    assert losses[0.0] != losses[0.99]


def test_the_area_is_that_of_the_roc_curve() -> None:
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 6, (60, 3)).astype(float)  # with ties
    labels = draw.integers(0, 3, 60)
    each = [roc_auc_score(labels == own, scores[:, own]) for own in range(3)]
    assert area(scores, labels).value == pytest.approx(np.mean(each))
    two = np.log(np.stack([1 - (p := draw.random(60)), p], 1))
    assert area(two, (labels > 0).astype(int)).value == pytest.approx(roc_auc_score(labels > 0, p))


def test_what_cannot_be_split_or_is_no_setting_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the class yes has 30 bags; folds=40"):
        BagsProblem(data=str(path), folds=40).load(0)
    for wrong in ({"folds": 2}, {"width": 0}, {"drop": 1.0}, {"batch": 0}):
        with pytest.raises(ShapeError):
            BagsProblem(**wrong)
    empty = tmp_path / "empty.csv"
    empty.write_text("bag,label,a,b\n" + "\n".join(f"m{i},{i % 2},1," for i in range(20)), "utf-8")
    with pytest.raises(DataError, match="the feature b has no value"):
        BagsProblem(data=str(empty), folds=5).load(0)


def test_elephants_are_told_from_other_animals() -> None:
    try:
        datasets.locate("elephant")
    except DataError as error:
        pytest.skip(str(error))
    problem = BagsProblem()
    data = problem.load(1)
    assert (len(data.train), len(data.valid), len(data.test)) == (160, 20, 20)
    assert problem.evaluate(trained(problem, data, "hopfield_pooling", 80), data.test)["auc"].value > 0.75
