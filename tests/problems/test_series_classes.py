"""Series in classes: normalised on what is trained on, every one scored at any batch size, no trace of padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from instar import catalogue
from instar.bench import costs
from instar.bench.run import lift
from instar.data.series import Series, SeriesSet
from instar.errors import DataError, ShapeError
from instar.interfaces import Data
from instar.problems import sequence_classes
from instar.problems.series_classes import SeriesClassesProblem, _normalised

SMALL = {"width": 16, "depth": 1, "heads": 2, "batch": 8}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rising or a falling second channel under noise, 5 to 14 frames, of very different scales, and a gap here and there."""
    draw = np.random.default_rng(0)
    lines = ["unique_id,ds,label,a,b"]
    for i in range(60):
        for t in range(length := 5 + i % 10):
            slope = (t / length - 0.5) * (1 if i % 2 else -1)
            gap = t == i % 7
            lines.append(
                f"s{i},{t},{'up' if i % 2 else 'down'},{1e6 * draw.normal()},{'' if gap else slope + 0.1 * draw.normal()}"
            )
    path = tmp_path_factory.mktemp("own") / "own.csv"
    path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def problem(path: Path) -> SeriesClassesProblem:
    return SeriesClassesProblem(data=str(path), lr=1e-2, **SMALL)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(problem: SeriesClassesProblem) -> Data:
    return problem.load(0)


def test_the_training_split_alone_has_mean_0_and_variance_1(problem: SeriesClassesProblem, data: Data) -> None:
    assert [len(part) for part in (data.train, data.valid, data.test)] == [38, 10, 12]
    assert (data.facts["channels"], data.facts["missing_values"] > 20, problem.length) == (2, True, 14)
    together = np.concatenate(data.train.rows)
    np.testing.assert_allclose(together[:, 0].mean(), 0, atol=1e-6)  # the channel without gaps
    np.testing.assert_allclose(together[:, 0].std(), 1, atol=1e-6)
    assert abs(np.concatenate(data.test.rows)[:, 0].mean()) > 1e-3
    assert SeriesClassesProblem(data=problem.data, **SMALL).load(1).sha256 == data.sha256  # type: ignore[arg-type]


def test_a_gap_is_the_last_value_and_before_the_first_the_mean() -> None:
    gap = np.nan
    train = Series([np.array([[0.0, 5.0], [2.0, 5.0]]), np.array([[gap, gap], [4.0, 5.0]])], np.array([0, 1]))
    test = Series([np.array([[gap, gap], [6.0, 7.0], [gap, gap], [gap, 5.0]])], np.array([1]))
    found = SeriesSet("own", ["x", "y"], ["a", "b"], train, test)
    seen, asked = _normalised(found, [train, test])
    deviation = np.std([0, 2, 4])
    np.testing.assert_allclose(seen.rows[0], [[-2 / deviation, 0], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(asked.rows[0][:, 0] * deviation, [0, 4, 4, 4], rtol=1e-6)
    assert asked.rows[0][:, 1].tolist() == [0, 2, 2, 0]  # a channel without variance keeps its unit
    assert asked.rows[0].dtype == np.float32


def test_what_training_does_not_show_is_refused() -> None:
    train = Series([np.array([[0.0, np.nan]]), np.array([[1.0, np.nan]])], np.array([0, 1]))
    with pytest.raises(DataError, match="channel b has no value in training"):
        _normalised(SeriesSet("own", ["x", "y"], ["a", "b"], train, train), [train, train])
    far = Series([np.array([[1e60]])], np.array([0]))
    near = Series([np.array([[0.0]]), np.array([[1.0]])], np.array([0, 1]))
    with pytest.raises(DataError, match="too far from those in training"):
        _normalised(SeriesSet("own", ["x", "y"], ["a"], near, far), [near, far])


@pytest.mark.parametrize("method", ["softmax", "aaren", "bigbird"])
def test_every_series_is_scored_and_padding_is_not_seen(
    method: str, problem: SeriesClassesProblem, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lift(problem, method, {}, data, 0)
    together = problem.evaluate(model, data.test)["accuracy"]
    assert len(together.totals) == len(together.weights) == 12
    monkeypatch.setattr(sequence_classes, "_EVALUATION_TOKENS", 1)
    assert problem.evaluate(model, data.test)["accuracy"].totals == together.totals
    frames, mask, _ = data.test.batch(range(12))
    assert mask is not None
    alone = torch.cat([model(data.test.batch([i])[0]) for i in range(12)])
    changed = frames.masked_fill(~mask.unsqueeze(-1), 99.0)
    torch.testing.assert_close(model(changed, mask), alone, atol=1e-5, rtol=1e-4)


def test_a_few_steps_find_the_slope(problem: SeriesClassesProblem, data: Data) -> None:
    model = lift(problem, "gru", {}, data, 0)
    problem.fit(model, data.train, steps=60, seed=0)
    assert problem.evaluate(model, data.test)["accuracy"].value >= 0.9
    assert data.facts["accuracy_of_the_majority_class"] <= 0.5


def test_a_single_channel_enters_by_more_than_its_sign(data: Data) -> None:
    problem = SeriesClassesProblem(**SMALL)  # type: ignore[arg-type]
    model = lift(problem, "gru", {}, data, 0)
    norm = model.blocks[0].mixer_norm
    low, high = (norm(model.embedding(torch.tensor([[value]]))) for value in (0.5, 2.0))
    assert (low - high).abs().max() > 0.1
    torch.testing.assert_close(low, norm(model.embedding(torch.tensor([[0.5]]))))


def test_costs_name_every_metric_of_the_card(problem: SeriesClassesProblem, data: Data) -> None:
    found = costs.measure(problem, lift(problem, "gla", {}, data, 0), data, 0)
    wanted = {m.id for m in catalogue.problem("series_classes").metrics if m.kind == "cost"}
    assert wanted == {name for name in found if "." not in name}


def test_splits_that_cannot_be_made(tmp_path: Path) -> None:
    head = "unique_id,ds,y,label,split\n"
    (tmp_path / "own.csv").write_text(f"{head}a,1,1,x,train\nb,1,1,y,train\nc,1,1,y,test\n", "utf-8")
    with pytest.raises(DataError, match="none is left for validation"):
        SeriesClassesProblem(data=str(tmp_path / "own.csv")).load(0)
    with pytest.raises(ShapeError, match="received"):
        SeriesClassesProblem(batch=0)
