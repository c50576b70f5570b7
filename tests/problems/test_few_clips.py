"""Few labels: two classifiers from the same weights, one of them pre-trained; what each may see; progress taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from instar import catalogue
from instar.bench import costs
from instar.bench.run import lift
from instar.errors import ShapeError
from instar.interfaces import Data
from instar.problems.few_clips import FewClipsProblem, Twins

SMALL: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "batch": 8, "frames": 6, "valid_items": 20, "test_items": 30}


@pytest.fixture(scope="module")
def problem() -> FewClipsProblem:
    return FewClipsProblem(**SMALL, train_items=60, labelled=16)


@pytest.fixture(scope="module")
def data(problem: FewClipsProblem) -> Data:
    return problem.load(0)


def make(problem: FewClipsProblem, data: Data) -> Twins:
    twins = lift(problem, "selective_s4", {"state_size": 4}, data, 0)
    assert isinstance(twins, Twins)
    return twins


def weights(model: torch.nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def test_twins_start_alike_and_only_one_is_pre_trained(problem: FewClipsProblem, data: Data) -> None:
    twins = make(problem, data)
    assert all(map(torch.equal, weights(twins.scratch), weights(twins.pretrained)))
    alone = make(problem, data).scratch
    problem.fit(twins, data.train, steps=4, seed=0)
    train = data.train
    few = type(train)(train.rows[:16], train.labels[:16], train.peak, train.begins[:16], train.images[:16])
    super(FewClipsProblem, problem).fit(alone, few, steps=4, seed=0)
    assert all(map(torch.equal, weights(twins.scratch), weights(alone)))
    assert not all(map(torch.equal, weights(twins.scratch), weights(twins.pretrained)))
    found = problem.evaluate(twins, data.test)
    assert found.keys() == {"accuracy@pretrained", "accuracy@scratch"}
    assert all(sum(items.weights) == 30 for items in found.values())


def test_labels_beyond_the_few_are_never_read(problem: FewClipsProblem, data: Data) -> None:
    train = data.train
    other = type(train)(train.rows, train.labels.copy(), train.peak, train.begins, train.images)
    other.labels[16:] = 0
    trained = []
    for split in (train, other):
        twins = make(problem, data)
        problem.fit(twins, split, steps=3, seed=0)
        trained.append(weights(twins))
    assert all(map(torch.equal, *trained))


def test_what_was_done_is_taken_up_again(problem: FewClipsProblem, data: Data, tmp_path: Path) -> None:
    whole, again = make(problem, data), make(problem, data)
    problem.fit(whole, data.train, steps=4, seed=0)
    problem.fit(again, data.train, steps=4, seed=0, monitor=lambda step, _: step == 2, checkpoint=tmp_path)
    resumed = make(problem, data)
    problem.fit(resumed, data.train, steps=4, seed=0, checkpoint=tmp_path)
    assert all(map(torch.equal, weights(whole), weights(resumed)))


def test_costs_name_every_metric_of_the_card(problem: FewClipsProblem, data: Data) -> None:
    found = costs.measure(problem, make(problem, data), data, 0)
    wanted = {m.id for m in catalogue.problem("few_clips").metrics if m.kind == "cost"}
    assert wanted == {name for name in found if "." not in name}


def test_bad_settings() -> None:
    with pytest.raises(ShapeError, match="received 61"):
        FewClipsProblem(train_items=60, labelled=61)
