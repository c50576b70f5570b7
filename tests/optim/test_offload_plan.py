"""What is predicted before a run: events, the paper's published times, plans for a budget, and rates that are measured."""

from __future__ import annotations

import itertools
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from offload_runs import network, train
from torch import nn

from instar.errors import BudgetError, PlanError, ShapeError
from instar.optim.offload.accelerator import (
    LinearMix,
    Node,
    baseline_step,
    best_interval,
    ideal_step,
    simulate_iteration,
)
from instar.optim.offload.calibration import calibrate
from instar.optim.offload.events import Tasks
from instar.optim.offload.plan import Hardware, Plan, plan_offload, simulate
from instar.optim.offload.schedule import interleaved
from instar.optim.offload.store import StoreSpec
from instar.optim.offloaded_adamw import OffloadedAdamW

UPDATES: dict[str, dict[int, float]] = {
    "7B": {2: 1338, 3: 1449, 4: 1462, 6: 1485, 8: 1509, 10: 1474},
    "8B": {2: 2069, 3: 2192, 4: 2243, 6: 2324, 8: 2351, 10: 2308},
    "13B": {2: 2596, 3: 2680, 4: 2821, 6: 2921, 8: 2922, 10: 3006},
    "20B": {2: 3499, 3: 3602, 4: 3818, 6: 3932, 8: 3940, 10: 3950},
}
"""Published medians, milliseconds of an update by k (logs of the paper; four A100s)."""
HARDWARE = Hardware(1e9, 2e9, 2e9)


@pytest.mark.parametrize("model", ["7B", "8B", "13B"])
@pytest.mark.parametrize("probes", [(2, 10), (2, 8), (2, 6), (2, 4)])
def test_two_published_times_predict_the_others(model: str, probes: tuple[int, int]) -> None:
    times = UPDATES[model]
    mix = LinearMix.fit({k: times[k] for k in probes})
    errors = [abs(mix.predict(k) / times[k] - 1) for k in times if k not in probes]
    assert statistics.mean(errors) < 0.05
    assert mix.best(tuple(times)) == min(times, key=lambda k: times[k]) == 2


def test_the_two_point_fit_is_exact_on_its_own_formula() -> None:
    true = LinearMix(1543.0, 1177.0)
    for probes in itertools.combinations(range(2, 12), 2):
        found = LinearMix.fit({k: true.predict(k) for k in probes})
        assert (found.a, found.b) == pytest.approx((true.a, true.b), rel=1e-9)
    with pytest.raises(PlanError, match="Two intervals"):
        LinearMix.fit({2: 1.0})
    with pytest.raises(PlanError, match="from 2 on"):
        LinearMix.fit({1: 1.0, 2: 2.0})


def rank(parameters: float, ratio: float, baseline: float, link: float = math.inf, gradients: float = math.inf) -> Node:
    """A rank whose host takes all of the published update without interleaving."""
    return Node(parameters * ratio / baseline, to_device=link, to_host=link, gradient_rate=gradients)


def fitted_link() -> float:
    """Bytes a second with which the published updates of 7B and 13B at k = 2 come out right on average."""
    published = ((7e9 / 4, 0.714, 0.413), (13e9 / 4, 1.295, 0.722))
    low, high = 1e9, 1e12
    for _ in range(40):
        link = math.sqrt(low * high)
        found = [
            simulate_iteration(rank(p, 0.8, base, link), parameters=p, k=2, ratio=0.8).update / k2 for p, base, k2 in published
        ]
        low, high = (link, high) if statistics.mean(found) > 1 else (low, link)
    return link


@pytest.mark.parametrize(
    ("ratio", "passes", "baseline", "published"),
    [
        (1.0, (0.210, 0.971, 0.343), 2.272, (7.279, 3.802, 2.964)),
        (0.8, (0.209, 0.916, 0.337), 1.781, (5.863, 3.240, 2.619)),
        (0.5, (0.210, 0.831, 0.338), 1.166, (4.256, 2.552, 2.191)),
    ],
)
def test_contributions_to_the_published_speed_up_of_20b(
    ratio: float, passes: tuple[float, float, float], baseline: float, published: tuple[float, float, float]
) -> None:
    """The link and the pace of waiting gradient copies are fitted on 7B and 13B; passes and host updates are those of 20B."""
    gradients = statistics.mean([2 * 0.8 * 7e9 / 4 / (1.344 - 0.365), 2 * 0.8 * 13e9 / 4 / (2.642 - 0.642)])
    node = rank(5e9, ratio, baseline, fitted_link(), gradients)
    forward, backward, other = passes
    given: dict[str, Any] = {"parameters": 5e9, "ratio": ratio, "forward": forward, "backward": backward, "other": other}
    found = [
        simulate_iteration(node, **given),
        simulate_iteration(node, async_gradients=True, **given),
        simulate_iteration(node, k=2, async_gradients=True, **given),
    ]
    for before, after, was, became in zip(found, found[1:], published, published[1:], strict=False):
        assert before.seconds / after.seconds == pytest.approx(was / became, rel=0.15)
    assert [one.seconds for one in found] == pytest.approx(published, rel=0.15)


def test_limits_of_the_accelerator_model() -> None:
    count, size = 20, 100_000_000
    free = Node(1e9, device_rate=3e9)
    for k in (2, 3, 5):
        host, device = (count - count // k) * size / 1e9, count // k * size / 3e9
        found = simulate_iteration(free, parameters=count * size, k=k, async_gradients=True).update
        assert max(host, device) - 1e-9 <= found <= max(host, device) + size / 3e9
    assert best_interval(Node(1e9, device_rate=1e-3, to_device=1e9, to_host=1e9), count, size) == count
    assert best_interval(Node(1e9), count, size) == 2
    slow = [simulate_iteration(Node(1e9, to_device=h, to_host=h), parameters=2e9, k=2).update for h in (1e9, 4e9, 16e9, 1e12)]
    assert slow == sorted(slow, reverse=True)
    wide = Node(2e9, to_device=25e9, to_host=25e9, convert_rate=5e9)
    assert simulate_iteration(wide, parameters=2e9).update == pytest.approx(baseline_step(wide, count, size))
    timeline = simulate_iteration(wide, parameters=2e9, k=3).timeline
    assert all(busy <= timeline.makespan + 1e-9 for busy in timeline.busy().values())
    k = best_interval(wide, count, size)
    assert ideal_step(wide, count, size, k) <= min(ideal_step(wide, count, size, n) for n in range(2, count)) * 1.5
    more = [simulate_iteration(wide, parameters=2e9, k=n, ratio=r).peak_device_bytes for n, r in ((4, 1.0), (2, 1.0), (2, 0.5))]
    assert more == sorted(more)


def test_events() -> None:
    tasks = Tasks()
    a = tasks.add("a", "one", 2.0)
    b = tasks.add("b", "two", 3.0)
    c = tasks.add("c", "one", 1.0, [b])
    tasks.add("d", "one", 4.0, [a, None])
    tasks.add("e", "two", 1.0, [c])
    timeline = tasks.run()
    assert [(s.name, s.start, s.end) for s in timeline.spans] == [("a", 0, 2), ("b", 0, 3), ("c", 6, 7), ("d", 2, 6), ("e", 7, 8)]
    assert timeline.busy() == {"one": 7.0, "two": 4.0}
    assert timeline.makespan <= sum(timeline.busy().values())
    with pytest.raises(PlanError):
        tasks.add("f", "one", 1.0, [99])
    with pytest.raises(PlanError):
        timeline.end("nothing")


@pytest.mark.parametrize(("residents", "streamed"), [(7, 7), (12, 4), (3, 10), (0, 5), (5, 0)])
@pytest.mark.parametrize("k", ["auto", 2, 4])
def test_interleaving_has_every_subgroup_once_and_streams_at_the_interval(residents: int, streamed: int, k: Any) -> None:
    first, rest = range(residents), range(residents, residents + streamed)
    order = interleaved(first, rest, k)
    assert sorted(order) == list(range(residents + streamed))
    if k != "auto" and residents >= (k - 1) * streamed:
        assert [x >= residents for x in order[: k * streamed]] == ([False] * (k - 1) + [True]) * streamed
    if streamed and k == "auto":
        gaps = [b - a for a, b in itertools.pairwise(n for n, x in enumerate(order) if x >= residents)]
        assert not gaps or max(gaps) - min(gaps) <= 1


def planned(hardware: Hardware = HARDWARE, budget: int = 70_000_000, **arguments: Any) -> Plan:
    model = torch.nn.Linear(4096, 4096, device="meta")
    return plan_offload(model, hardware, None if "ratio" in arguments else budget, **arguments)


def test_plans_are_ordered_as_theory_has_it() -> None:
    interleaved_, split = planned(), planned(schedule="pipelined")
    pipelined, sequential = (planned(schedule=s, ratio=1.0) for s in ("pipelined", "sequential"))
    memory = planned(budget=10**9)
    times = [p.step_seconds for p in (memory, interleaved_, split, pipelined, sequential)]
    assert times == sorted(times)
    layout = memory.division.layout
    assert memory.step_seconds == pytest.approx(layout.elements / HARDWARE.update_rate)
    each = layout.elements / HARDWARE.update_rate + 2 * pipelined.scratch_bytes / 2e9
    assert sequential.step_seconds == pytest.approx(each, rel=0.05)
    assert pipelined.step_seconds == pytest.approx(pipelined.scratch_bytes / 2e9, rel=0.1)


def test_faster_disks_and_longer_passes_never_cost_time() -> None:
    rates = [planned(Hardware(1e9, rate, rate)).step_seconds for rate in (2e8, 5e8, 1e9, 4e9, 1e12)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(2**24 / 1e9, rel=0.01)
    assert planned(pass_seconds=1.0, alternate=False).step_seconds <= planned(alternate=False).step_seconds
    assert planned(Hardware(1e9, 2e9, 2e9, duplex=False)).step_seconds >= planned().step_seconds
    slow, fast = (planned(Hardware(1e9, rate, rate)).hiding_interval for rate in (1e8, 1e15))
    assert fast == 2 < slow


def test_what_is_planned_is_what_is_held() -> None:
    model = network()
    for budget in (60_000, 150_000):
        plan = plan_offload(model, HARDWARE, budget, subgroup=700)
        ours = OffloadedAdamW(model, budget_bytes=budget, subgroup=700)
        train(model, ours, 1)
        assert ours.engine.memory.peak == plan.division.bytes <= budget
        assert plan.peak_bytes == plan.division.bytes + 2 * sum(p.numel() * 4 for p in model.parameters())
        assert ours.engine.store.nbytes == plan.scratch_bytes
        assert plan.json()["streamed"] == ours.engine.division.streamed
    with pytest.raises(BudgetError, match="The least that works"):
        plan_offload(model, HARDWARE, 10_000)


def test_a_store_with_a_name_is_planned_with_the_buffer_that_it_keeps(tmp_path: Path) -> None:
    model = network()
    whole = plan_offload(model, HARDWARE, 10**9, subgroup=700).division.bytes
    for recoverable, store in ((False, tmp_path), (True, tmp_path / "state")):
        plan = plan_offload(model, HARDWARE, whole, subgroup=700, recoverable=recoverable)
        ours = OffloadedAdamW(model, budget_bytes=whole, subgroup=700, store=store)
        assert plan.division == ours.engine.division
        assert bool(plan.division.streamed) == recoverable
        ours.close()


def test_a_timeline_says_when_every_subgroup_is_read_updated_and_written() -> None:
    plan = planned(ratio=0.5, alternate=False)
    timeline = simulate(plan)
    first = plan.division.residents
    for x in range(first, plan.division.count):
        assert timeline.end(f"2 read {x}") <= timeline.end(f"2 update {x}") <= timeline.end(f"2 write {x}")
        assert timeline.end(f"1 write {x}") <= timeline.end(f"2 read {x}")
    assert len([s for s in timeline.spans if s.name.startswith("2 update")]) == plan.division.count


def test_rates_are_measured(tmp_path: Path) -> None:
    found = calibrate(StoreSpec(tmp_path, "throttled", rate=5e8), seconds=0.3, extent=1 << 20, room=1 << 23)
    assert found.emulated
    assert max(found.read_rate, found.write_rate) <= 5e8 * 1.01  # a busy machine may give less
    real = calibrate(tmp_path, seconds=0.2, extent=1 << 20, room=1 << 23)
    assert not real.emulated
    assert min(real.update_rate, real.read_rate, real.write_rate) > 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ShapeError):
        calibrate(extent=1000)


def test_models_on_the_device_meta_are_planned() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(8192, 8192) for _ in range(30)))
    plan = plan_offload(model, HARDWARE, 2 * 10**9)
    assert plan.division.bytes <= 2 * 10**9 < plan.state_bytes
