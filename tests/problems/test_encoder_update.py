"""A change of encoder as a problem: who is searched by whom, item by item, on sentences and questions of people."""

from __future__ import annotations

import os
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from instar.bench import costs, run
from instar.bench.plan import Request, prepare
from instar.data.collection import Collection, Vectors
from instar.errors import DataError, ShapeError
from instar.interfaces import CompatibleHead, Monitor, Pairs
from instar.problems import encoder_search, encoder_upgrades, encoder_world
from instar.problems.encoder_update import EncoderUpdateProblem, Kind
from instar.problems.encoder_world import World
from instar.problems.kept import digest, kept

needs_data = pytest.mark.skipif("INSTAR_DATA" not in os.environ, reason="INSTAR_DATA names no folder of data sets")


def turned(rows: int = 300, width: int = 12, classes: int | None = 10, seed: int = 0) -> tuple[World, Tensor]:
    """Old vectors that are a rotation of the new ones, and the rotation."""
    draw = np.random.default_rng(seed)
    new = draw.standard_normal((rows, width)).astype(np.float32)
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    rotation = np.linalg.qr(draw.standard_normal((width, width)))[0].astype(np.float32)
    ids = [str(i) for i in range(rows)]
    labels = None if classes is None else [i % classes for i in range(rows)]
    old = new @ rotation.T
    parts = np.split(np.arange(rows), [rows // 2, rows * 5 // 8])
    world = World(Collection("turned", ids, labels=labels), Vectors("old", "a", old), Vectors("new", "b", new), None, *parts)
    return world, torch.from_numpy(rotation)


class Turned(CompatibleHead):
    """Knows the rotation."""

    def __init__(self, rotation: Tensor) -> None:
        super().__init__()
        self.rotation = rotation
        self.old_dim = self.new_dim = self.input_dim = self.full_dim = len(rotation)

    def fit(self, pairs: Pairs, *, steps: int | None = None, seed: int = 0, monitor: Monitor | None = None) -> None: ...

    def compatible(self, x: Tensor) -> Tensor:
        return x @ self.rotation.T

    def full(self, x: Tensor) -> Tensor:
        return x

    def lower(self, full: Tensor, generation: int) -> Tensor:
        return self.compatible(full)


@pytest.mark.parametrize("classes", [10, None])
def test_the_true_rotation_finds_everything_at_every_stage(classes: int | None) -> None:
    world, rotation = turned(classes=classes)
    search = encoder_search.search_in(world, world.test, 1000, 0)
    found = encoder_search.measure(Turned(rotation), search)
    assert set(found) == {f"{m}@{c}" for m in ("top1", "recall10", "map") for c in ("old_old", "new_old", "half", "new_new")}
    for metric in ("top1", "recall10", "map"):
        values = [found[f"{metric}@{c}"].value for c in ("old_old", "new_old", "half", "new_new")]
        assert values == pytest.approx([values[0]] * 4, abs=2e-3)  # rounding swaps a near tie here and there
    if classes is None:  # right is what the new encoder itself finds
        assert found["recall10@new_new"].value == 1.0
        assert found["map@new_old"].value == pytest.approx(1.0, abs=2e-3)


def test_marks_are_those_of_a_search_by_hand() -> None:
    world, rotation = turned(rows=160)
    search = encoder_search.search_in(world, world.test, 1000, 3)
    wrong = torch.roll(rotation, 1, 0)
    found = encoder_search.measure(Turned(wrong), search)
    order, half = search.gallery.order, len(search.gallery.order) // 2
    labels = np.array(world.collection.labels)
    old, new = (torch.from_numpy(side.documents) for side in (world.old, world.new))
    ask = {"old_old": (old, old), "new_old": (new @ wrong.T, new @ wrong.T), "half": (new @ wrong.T, new), "new_new": (new, new)}
    for condition, (of_old, of_new) in ask.items():
        moved = {"half": half, "new_new": len(order)}.get(condition, 0)
        top, recall, precision = [], [], []
        for query in search.asked.queries:
            scores = [(of_new[query] @ new[d] if i < moved else of_old[query] @ old[d]).item() for i, d in enumerate(order)]
            ranked = [d for _, d in sorted(zip([-s for s in scores], order, strict=True)) if d != query]
            right = labels[ranked] == labels[query]
            top.append(right[0])
            recall.append(right[:10].sum() / min(10, right.sum()))
            precision.append((np.cumsum(right) / np.arange(1, len(right) + 1))[right].mean())
        for metric, values in (("top1", top), ("recall10", recall), ("map", precision)):
            assert found[f"{metric}@{condition}"].value == pytest.approx(np.mean(values), abs=1e-6), (metric, condition)


def test_every_query_is_scored_at_any_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    world, rotation = turned()
    search = encoder_search.search_in(world, world.test, 1000, 0)
    whole = encoder_search.measure(Turned(rotation), search)
    monkeypatch.setattr(encoder_search, "_ROWS", 7)
    assert encoder_search.measure(Turned(rotation), search) == whole
    for items in whole.values():
        assert sum(items.weights) == len(search.asked.queries) == len(world.test)


def test_kept_arrays_are_made_once_and_again_when_they_are_damaged(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def make() -> dict[str, Any]:
        calls.append(1)
        return {"x": np.arange(6.0).reshape(2, 3).T, "n": np.arange(3)}

    for _ in range(3):
        found = kept(["a", 1], make)
        assert np.array_equal(found["x"], np.arange(6.0).reshape(2, 3).T)
    assert len(calls) == 1
    kept(["a", 2], make)
    assert len(calls) == 2
    (first, _) = sorted(tmp_path.rglob("*.safetensors"), key=lambda p: p.stat().st_mtime)
    damaged = bytearray(first.read_bytes())
    damaged[-1] ^= 1
    first.write_bytes(damaged)
    assert np.array_equal(kept(["a", 1], make)["n"], np.arange(3))
    first.write_bytes(damaged[:40])
    assert np.array_equal(kept(["a", 1], make)["n"], np.arange(3))
    assert len(calls) == 4
    assert digest(["ab", "c"]) != digest(["a", "bc"])


def test_questions_of_the_embedded_text() -> None:
    problem = EncoderUpdateProblem(upgrade="lsa", documents=160, pairs=60, queries=40)
    data, again = problem.load(0), problem.load(1)
    assert data.sha256 == again.sha256
    assert not torch.equal(data.train.old, again.train.old)  # the seed draws pairs
    assert np.array_equal(data.test.asked.queries, again.test.asked.queries)  # and never what is asked
    assert not np.array_equal(data.test.gallery.order, again.test.gallery.order)
    parts = [set(search.gallery.order.tolist()) for search in (data.valid, data.test)]
    assert not parts[0] & parts[1]
    rows = {tuple(row) for row in data.train.old.numpy().round(5).tolist()}
    searched = data.test.world.old.documents[sorted(parts[0] | parts[1])].round(5).tolist()
    assert not rows & {tuple(row) for row in searched}
    found = {}
    for slug in ("no_map", "ridge", "residual_mlp"):
        subject = run.lift(problem, slug, {}, data, 0)
        steps: list[tuple[int, float]] = []
        problem.fit(subject, data.train, steps=5, seed=0, monitor=lambda step, loss: steps.append((step, loss)))  # noqa: B023
        assert steps[-1][0] == 5
        found[slug] = problem.evaluate(subject, data.test)
        assert all(len(items.totals) == data.facts["test_items"] for items in found[slug].values())
        assert all(sum(items.weights) == data.facts["test_queries"] for items in found[slug].values())
        figures = costs.measure(problem, subject, data, 0)
        assert figures["head_bytes"] == figures["parameters"] * 4
        assert {"query_flops", "row_bytes"} <= figures.keys()
    for metric in ("top1", "recall10", "map"):  # neither depends on the map
        for condition in ("old_old", "new_new"):
            assert found["ridge"][f"{metric}@{condition}"] == found["no_map"][f"{metric}@{condition}"]
    for workload in problem.workloads():
        workload.prepare(run.lift(problem, "ridge", {}, data, 0))()


@needs_data
def test_the_experiment_of_the_paper_on_few_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_world, "_PER_CLASS", {"train": 3, "val": 2, "test": 2})
    problem = EncoderUpdateProblem(upgrade="classes", old_classes=30)
    data, other = problem.load(0), problem.load(1)
    assert data.sha256 == other.sha256
    assert (len(data.train.new), data.facts["test_items"], data.facts["test_queries"]) == (450, 150, 300)
    assert data.train.inputs is not None
    assert data.train.inputs.shape == (450, 384)
    assert not torch.equal(data.train.old[:5], other.train.old[:5])
    found = {}
    for slug in ("no_map", "ridge"):
        subject = run.lift(problem, slug, {}, data, 0)
        problem.fit(subject, data.train, steps=1, seed=0)
        found[slug] = problem.evaluate(subject, data.test)
    assert found["ridge"]["top1@new_old"].value > found["no_map"]["top1@new_old"].value + 0.1  # no map is chance here
    again = run.lift(problem, "ridge", {}, data, 0)
    problem.fit(again, data.train, steps=1, seed=0)
    assert problem.evaluate(again, data.test) == found["ridge"]


def test_settings_that_mean_nothing() -> None:
    for bad in ({"upgrade": "familly"}, {"pairs": 1}, {"old_classes": 0}, {"documents": -3}):
        with pytest.raises(ShapeError):
            EncoderUpdateProblem(**bad)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="CLINC150"):
        EncoderUpdateProblem(upgrade="classes", data="squad:test")
    with pytest.raises(DataError, match="squad:test"):
        EncoderUpdateProblem(upgrade="fine_tune", data="xquad")
    with pytest.raises(DataError, match="too small"):
        EncoderUpdateProblem(documents=30, pairs=10).load(0)


def test_a_plan_leaves_the_width_that_a_head_reads_to_the_problem() -> None:
    request = Request("encoder_update", ("ridge",), settings={"upgrade": "lsa", "documents": 160, "pairs": 60, "queries": 40})
    plan, _, data = prepare(request)
    assert plan.baseline.address == "no_map"
    assert all("input_dim" not in entry.arguments for entry in plan.entries)
    assert data.facts["train_items"] == 60


def test_the_recipe_of_an_encoder_says_what_decides_its_vectors() -> None:
    known = encoder_upgrades.UPGRADES
    assert {*known, "classes"} == set(get_args(Kind))
    assert known["family"].old.recipe([]) != known["family"].new.recipe([])
    assert known["fine_tune"].old.recipe([]) == known["family"].new.recipe([])
    assert known["fine_tune"].new.recipe([]) != known["fine_tune"].old.recipe([])
    assert known["lsa"].old.recipe(["a text"]) != known["lsa"].old.recipe(["another"])
    assert known["family"].old.recipe(["a text"]) == known["family"].old.recipe(["another"])
