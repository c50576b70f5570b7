"""A run in its process: what a step costs in a budget of seconds, and how many steps were made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instar.bench import compare, run
from instar.bench.plan import Request
from instar.bench.record import Store
from instar.errors import DivergedError
from instar.problems.grow_text import GrowTextProblem
from instar.problems.recall import RecallProblem


class Ticking:
    """A problem of which every step takes as many seconds as `seconds` says, by a clock of its own."""

    def __init__(self, steps: int, seconds: Callable[[int], float], until: int = 10**6) -> None:
        self.timed_steps, self.seconds, self.until, self.now = steps, seconds, until, 0.0

    def fit(self, subject: Any, train: Any, *, steps: int, seed: int, monitor: Any) -> None:
        for step in range(steps):
            if step == self.until:
                raise DivergedError("The loss is nan.")
            self.now += self.seconds(step)
            if monitor(step + 1, 0.0):
                return


def calibrated(problem: Ticking, monkeypatch: pytest.MonkeyPatch) -> float:
    class Task:
        added = None
        spec = {"method": {"slug": "", "arguments": {}}}  # noqa: RUF012

    class Data:
        train = None

    monkeypatch.setattr(run, "_problem", lambda task: (problem, Data))
    monkeypatch.setattr(run, "lift", lambda *_: None)
    monkeypatch.setattr(run.time, "perf_counter", lambda: problem.now)
    return run.calibrate(Task, 1, lambda *_: None)["step_seconds"]  # type: ignore[arg-type]


def test_what_is_done_every_ten_steps_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: Callable[[int], float] = lambda step: 0.5 if step == 0 else 0.11 if step % 10 == 0 else 0.01  # noqa: E731
    assert calibrated(Ticking(RecallProblem.timed_steps, seconds), monkeypatch) == pytest.approx(0.02)


def test_later_stages_are_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    chain: Callable[[int], float] = lambda step: 0.01 if step < 62 else 0.04  # noqa: E731
    assert calibrated(Ticking(GrowTextProblem.timed_steps, chain), monkeypatch) == pytest.approx(0.022)


def test_a_slow_method_is_not_waited_for_and_one_that_diverges_has_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    assert calibrated(Ticking(20, lambda _: 6.0), monkeypatch) == pytest.approx(6.0)
    assert calibrated(Ticking(20, lambda _: 0.01, until=9), monkeypatch) == pytest.approx(0.01)
    with pytest.raises(DivergedError):
        calibrated(Ticking(20, lambda _: 0.01, until=1), monkeypatch)


def test_tokens_are_of_the_steps_that_were_made(tmp_path: Path) -> None:
    small = {"length": 32, "batch": 4, "width": 16, "depth": 1, "heads": 2, "n": 16, "hidden": 32, "test_blocks": 3}
    asked = Request("grow_text", ("from_scratch",), settings=small, seeds=1, budget="40steps", baseline="continued_base")
    compare.compare(asked, tmp_path, timed=False)
    tokens = {r["address"]: (r["train_tokens"], r["curve"][-1][0]) for r in Store(tmp_path).all()}
    assert tokens["continued_base"] == (40 * 128, 40)
    assert tokens["from_scratch"] == (18 * 128, 18)
