"""Anomalies: scores are read as they should be, nothing is learnt from what is anomalous, and chance is shown beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from instar.bench.run import lift
from instar.data import faults
from instar.errors import DataError, ShapeError
from instar.problems import detection
from instar.problems.anomaly import AnomalyProblem


def test_areas_are_those_of_scikit_learn_and_their_items_are_runs() -> None:
    draw = np.random.default_rng(0)
    labels = np.zeros(200, dtype=bool)
    labels[[*range(20, 30), *range(90, 95), 150]] = True
    scores = np.round(draw.normal(size=200) + labels, 1)  # with ties
    assert detection.segments(labels) == [(20, 30), (90, 95), (150, 151)]
    roc = detection.roc_auc(scores, labels)
    assert roc.value == pytest.approx(metrics.roc_auc_score(labels, scores))
    assert list(roc.weights) == [10, 5, 1]
    assert detection.pr_auc(scores, labels).value == pytest.approx(metrics.average_precision_score(labels, scores))
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    assert detection.best_f1(scores, labels) == pytest.approx(np.nanmax(2 * precision * recall / (precision + recall)))
    assert detection.f1(scores > 1, labels) == pytest.approx(metrics.f1_score(labels, scores > 1))


def test_point_adjustment_never_loses_a_row_and_flatters_chance() -> None:
    draw = np.random.default_rng(1)
    labels = np.zeros(600, dtype=bool)
    labels[100:160] = labels[400:460] = True
    chance = draw.random(600)
    for threshold in (0.5, 0.9, 0.99):
        called = chance > threshold
        assert (detection.adjusted(called, labels) & labels).sum() >= (called & labels).sum()
        assert np.array_equal(detection.adjusted(called, labels)[~labels], called[~labels])
    assert detection.best_f1(chance, labels, adjust=True) > detection.best_f1(chance, labels) + 0.3


def test_the_best_f1_is_the_best_of_every_threshold_however_many_scores_there_are() -> None:
    draw = np.random.default_rng(2)
    rare = np.zeros(20_000, dtype=bool)
    rare[draw.choice(20_000, 10, replace=False)] = True
    assert detection.best_f1(draw.random(20_000) + rare, rare) == 1.0
    labels = np.zeros(900, dtype=bool)
    labels[[0, *range(300, 330), *range(700, 705), 899]] = True
    for scores in (draw.normal(size=900) + labels, np.round(draw.normal(size=900) + labels, 1), np.zeros(900)):
        for adjust in (False, True):
            calls = [scores >= threshold for threshold in np.unique(scores)]
            whole = [_found_whole(called, labels) if adjust else called for called in calls]
            best = max(detection.f1(called, labels) for called in whole)
            assert detection.best_f1(scores, labels, adjust=adjust) == pytest.approx(best, abs=1e-12)
    nothing = np.zeros(900, dtype=bool)
    assert detection.best_f1(draw.random(900), nothing, adjust=True) == 0.0


def _found_whole(called: detection.Labels, labels: detection.Labels) -> detection.Labels:
    found = called.copy()
    for first, last in detection.segments(labels):
        found[first:last] |= called[first:last].any()
    return found


def test_faults_lie_where_they_are_said_to_and_nothing_else_changes() -> None:
    values = np.random.default_rng(0).normal(size=(400, 3))
    changed, labels = faults.plant(values, 200, 400, 8, 5)
    assert not labels[:200].any()
    assert len(detection.segments(labels)) in range(6, 9)  # two may touch
    assert np.array_equal(changed[~labels], values[~labels])
    assert all((changed[a:b] != values[a:b]).any() for a, b in detection.segments(labels))
    again = faults.plant(values, 200, 400, 8, 5)
    assert np.array_equal(again[0], changed)
    assert not np.array_equal(faults.plant(values, 200, 400, 8, 6)[1], labels)


def test_forecasts_find_planted_faults_better_than_chance() -> None:
    problem = AnomalyProblem()
    data = problem.load(0)
    assert data.sha256 != problem.load(1).sha256
    found = {}
    for name in ("repeat_last", "rlinear"):
        subject = lift(problem, name, {}, data, 0)
        problem.fit(subject, data.train, steps=60, seed=0)
        found[name] = problem.evaluate(subject, data.test)
        assert sum(found[name]["roc_auc"].weights) == data.facts["anomalous_test_rows"]
        assert found[name]["adjusted_f1"].value >= found[name]["best_f1"].value >= found[name]["f1"].value
    assert max(one["roc_auc"].value for one in found.values()) > 0.55


def test_nothing_is_learnt_from_anomalous_rows_of_a_table(tmp_path: Path) -> None:
    wave = np.sin(2 * np.pi * np.arange(400) / 10)
    labels = np.zeros(400)
    labels[[50, 51, 210, 250, 300, 350, 390]] = 1
    paths = []
    for size in (50.0, -80.0):
        path = tmp_path / f"{size}.csv"
        values = np.where((np.arange(400) < 60) & (labels == 1), size, wave + 3 * labels)
        path.write_text("\n".join(["t,label", *(f"{v},{int(x)}" for v, x in zip(values, labels, strict=True))]), "utf-8")
        paths.append(path)
    one, two = (AnomalyProblem(data=str(path), context=16).load(0) for path in paths)
    np.testing.assert_array_equal(one.train.panel.values, two.train.panel.values)
    problem = AnomalyProblem(data=str(paths[0]), context=16)
    subject = lift(problem, "seasonal_naive", {"season": 10}, one, 0)
    problem.fit(subject, one.train, steps=1, seed=0)
    assert problem.evaluate(subject, one.test)["roc_auc"].value > 0.95


def test_a_row_of_a_long_table_is_anomalous_where_any_of_its_series_is(tmp_path: Path) -> None:
    path, marks = tmp_path / "long.csv", {"a": [20, 75], "b": [30, 75, 90]}
    lines = [f"{name},{t},{t % 7},{int(t in marks[name])}" for name in "ab" for t in range(100)]
    path.write_text("\n".join(["unique_id,ds,y,label", *lines]), "utf-8")
    found = AnomalyProblem(data=str(path), context=8).load(0)
    assert np.flatnonzero(found.test.labels).tolist() == [20, 30, 75, 90]
    assert np.isnan(found.train.panel.values[[20, 30]]).all()
    path.write_text(path.read_text("utf-8").replace("b,40,5,0", "b,40,5,2"), "utf-8")
    with pytest.raises(DataError, match="1 where a row is anomalous"):
        AnomalyProblem(data=str(path), context=8).load(0)


def test_what_it_refuses(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["t,label", *(f"{t % 7},{2 if t == 90 else 0}" for t in range(100))]), "utf-8")
    with pytest.raises(DataError, match="1 where a row is anomalous"):
        AnomalyProblem(data=str(path), context=8).load(0)
    path.write_text("\n".join(["t,label", *(f"{t % 7},0" for t in range(100))]), "utf-8")
    with pytest.raises(DataError, match="test rows must hold"):
        AnomalyProblem(data=str(path), context=8).load(0)
    with pytest.raises(DataError, match="too few"):
        AnomalyProblem(data=str(path), context=90).load(0)
    with pytest.raises(ShapeError):
        AnomalyProblem(context=0)
