"""Training on two texts: every block is scored, and a stopped run ends in the same bits whatever the optimiser keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from instar import catalogue
from instar.bench import run
from instar.bench.statistics import exact
from instar.bench.summary import Cell, Group, Row
from instar.errors import CheckpointError, ShapeError
from instar.problems.train_text import TrainTextProblem
from instar.report import columns

SMALL: dict[str, Any] = {"length": 32, "batch": 4, "width": 16, "depth": 1, "heads": 2, "test_blocks": 3}


def made(slug: str, **arguments: Any) -> tuple[TrainTextProblem, Any, Any]:
    problem = TrainTextProblem(**SMALL)
    data = problem.load(0)
    return problem, data, run.lift(problem, slug, arguments, data, 0)


def test_gain_and_retention_are_of_the_blocks_of_their_texts() -> None:
    problem, data, subject = made("adamw", lr=1e-2)
    before = problem.evaluate(subject, data.test)
    problem.fit(subject, data.train, steps=60, seed=0)
    weights = {key: tensor.clone() for key, tensor in subject.model.state_dict().items()}
    after = problem.evaluate(subject, data.test)
    assert after["bits_per_byte@first"].value < before["bits_per_byte@first"].value - 1
    assert len(after["bits_per_byte@first"].totals) == len(after["bits_per_byte@kept"].totals) == len(data.test.first)
    assert len(after["bits_per_byte@second"].totals) == len(data.test.second)
    assert after["bits_per_byte@first"].totals != after["bits_per_byte@kept"].totals
    assert all(torch.equal(t, weights[k]) for k, t in subject.model.state_dict().items())  # evaluation leaves the last weights


@pytest.mark.parametrize("slug", ["adamw", "lamb", "mkor", "kfac", "muon"])
@pytest.mark.parametrize("stop", [5, 14])  # in the first and in the second text
def test_a_stopped_run_ends_in_the_same_bits(slug: str, stop: int, tmp_path: Path) -> None:
    problem, data, whole = made(slug)
    problem.fit(whole, data.train, steps=15, seed=0)
    stopped = made(slug)[2]
    problem.fit(stopped, data.train, steps=15, seed=0, monitor=lambda step, _: step == stop, checkpoint=tmp_path)
    resumed = made(slug)[2]
    seen: list[int] = []
    problem.fit(resumed, data.train, steps=15, seed=0, monitor=lambda step, _: seen.append(step), checkpoint=tmp_path)
    assert seen == list(range(stop + 1, 16))
    for a, b in ((whole.model.state_dict(), resumed.model.state_dict()), (whole.after_first, resumed.after_first)):
        assert all(torch.equal(tensor, b[key]) for key, tensor in a.items())


def test_another_optimiser_s_progress_is_refused(tmp_path: Path) -> None:
    problem, data, subject = made("adamw")
    problem.fit(subject, data.train, steps=10, seed=0, monitor=lambda step, _: step == 3, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="other settings"):
        problem.fit(made("lamb")[2], data.train, steps=10, seed=0, checkpoint=tmp_path)


def test_costs_count_what_is_kept_and_the_subject_makes_no_step() -> None:
    problem, _, subject = made("adamw")
    costs = problem.costs(subject)
    assert costs["state_bytes"] == pytest.approx(8 * costs["parameters"], rel=0.02)
    assert costs["peak_train_bytes"] > 16 * costs["parameters"]  # weights, gradients and both moments, and activations
    assert not subject.optimiser.state


def test_state_in_a_file_is_not_in_the_peak() -> None:
    problem = TrainTextProblem(**{**SMALL, "width": 64, "heads": 4})
    data = problem.load(0)
    subjects = {ratio: run.lift(problem, "offloaded_adamw", {"ratio": ratio}, data, 0) for ratio in (0.0, 1.0)}
    peak = {ratio: problem.costs(subject)["peak_train_bytes"] for ratio, subject in subjects.items()}
    engines = {ratio: subject.optimiser.engine for ratio, subject in subjects.items()}
    assert peak[0.0] - peak[1.0] == engines[0.0].division.bytes - engines[1.0].division.bytes > 0


@pytest.mark.parametrize(("problem", "texts"), [("train_text", "first second kept"), ("grow_text", "grown base second kept")])
def test_gain_retention_time_and_memory_stand_in_one_table(problem: str, texts: str) -> None:
    metrics = catalogue.problem(problem).metrics
    row = Row("one", True, "default", [], dict.fromkeys((m.id for m in metrics), Cell(exact(1.0))))
    found = {m.id for m in columns.shown(Group(problem, {}, [row], [], None, metrics))}
    assert {*(f"bits_per_byte@{text}" for text in texts.split()), "step_seconds", "peak_train_bytes", "state_bytes"} <= found


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ShapeError, match="share"):
        TrainTextProblem(share=1.0)
