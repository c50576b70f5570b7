"""The answer in words, on comparisons whose outcome is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from made_records import EFFECTS, failed, group_of, problem, run, timing
from scipy import stats

from instar.bench.statistics import Estimate
from instar.bench.summary import Cell, summarise
from instar.items import Floor
from instar.report import columns, words


def answer(addresses: list[str], seeds: int = 5, *extra: dict[str, Any], noise: float = 0.004) -> words.Answer:
    records = [run(a, s, EFFECTS[a], noise=noise) for a in addresses for s in range(seeds)]
    return words.answer(group_of([*records, *extra]))


@pytest.mark.parametrize(
    ("address", "verdict", "headline"),
    [
        ("better", "better", "better is better"),
        ("worse", "worse", "worse is worse"),
        ("equal", "equal within the margin", "equal is equal within the margin"),
    ],
)
def test_verdicts(address: str, verdict: str, headline: str) -> None:
    found = answer(["softmax", address])
    assert headline in found.headline
    assert found.passages[0].verdict == verdict
    assert "95 % interval" in found.passages[0].quality[0]


def test_undecided_says_what_would_decide() -> None:
    found = answer(["softmax", "gla"], 3, noise=0.08)
    assert "gla is not to be told apart" in found.headline
    assert found.passages[0].verdict == "undecided"
    assert "would decide it" in found.passages[0].quality[0] or "would be needed" in found.passages[0].quality[0]


def test_too_few_seeds_give_no_interval_and_no_verdict() -> None:
    found = answer(["softmax", "better"], 2)
    assert "no interval can be given" in found.headline
    assert found.passages[0].verdict == "no verdict"
    assert "2 seeds: no interval" in found.passages[0].quality[0]
    assert not any("95 %" in text for text in found.passages[0].quality)


def test_one_item_without_chance_is_not_called_too_few_seeds() -> None:
    records = [run(address, seed) for address in ("softmax", "gla") for seed in range(5)]
    for record in records:
        bits = 1.0 if record["address"] == "gla" else 2.0
        record["metrics"] = {"bits_per_byte@T": {"value": bits, "totals": [bits], "weights": [1.0]}}
    group = group_of(records)
    found = words.answer(group)
    said = [found.headline, *found.passages[0].quality, columns.text(group, group.rows[1], group.metrics[0]).detail]
    assert found.passages[0].verdict == "undecided"
    assert not any("few" in text or "below 3" in text for text in said)
    assert all("one item" in text for text in said[1:])


def test_folders_with_two_baselines_have_one_together() -> None:
    one = [run(address, seed, EFFECTS[address]) for address in ("softmax", "better") for seed in range(3)]
    other = [
        {**run(address, seed, EFFECTS[address]), "baseline": address == "gla"}
        for address in ("gla", "worse")
        for seed in range(3)
    ]
    group = group_of([*other, *one])
    assert [(row.address, row.baseline) for row in group.rows] == [
        ("softmax", True), ("better", False), ("gla", False), ("worse", False)
    ]  # fmt: skip
    assert [passage.address for passage in words.answer(group).passages] == ["better", "gla", "worse"]


def test_a_method_that_failed_is_named_with_its_reason() -> None:
    found = answer(["softmax", "better"], 3, failed("worse", 0, "loss is nan"))
    assert "worse is without a result" in found.headline
    assert "the run failed (diverged)" in next(p for p in found.passages if p.address == "worse").quality[0]
    assert any("1 run failed" in text for text in found.cautions)


def test_no_baseline() -> None:
    found = answer(["better", "worse"], 3)
    assert "baseline is not among the records" in found.headline
    assert all(p.verdict == "no verdict" for p in found.passages)


def test_a_baseline_that_failed_leaves_nothing_to_compare_with() -> None:
    found = answer(["better"], 3, failed("softmax", 0, "out of memory"))
    assert "without a figure of the baseline" in found.headline


def test_times_alone() -> None:
    found = words.answer(group_of([timing(["softmax", "gla"])]))
    assert "not measured" in found.headline
    assert found.passages[0].quality == []
    assert any("Prefill of 4096 tokens: 0.5" in text for text in found.passages[0].costs)


def test_costs_name_the_crossing_and_properties_the_trend() -> None:
    found = answer(["softmax", "gla"], 3, timing(["softmax", "gla"])).passages[0]
    prefill = next(text for text in found.costs if text.startswith("Prefill"))
    assert "below softmax from a context length of about" in prefill
    assert any("State after 4096 tokens: 1/64 that of softmax; below softmax at every context length" in t for t in found.costs)
    assert "at T →" in found.properties[0]
    assert "at 4T (softmax: " in found.properties[0]


def test_a_busy_machine_is_said() -> None:
    found = answer(["softmax", "gla"], 3, timing(["softmax", "gla"], busy=True))
    assert any("other work held the machine" in text for text in found.cautions)
    assert any("measured on a busy machine" in text for text in found.passages[0].costs)


def test_no_advice_where_the_budget_is_not_the_real_scale() -> None:
    found = answer(["softmax", "better", "equal"])
    assert found.advice == []
    assert any("do not transfer" in text and "no advice" in text for text in found.cautions)


def test_a_card_without_a_caution_still_warns(shelf: dict[str, Any]) -> None:
    shelf["prose"] = problem(caution="")
    assert any(words.CAUTION in text for text in answer(["softmax", "better"]).cautions)


def test_advice_where_it_is_the_real_scale(shelf: dict[str, Any]) -> None:
    shelf["prose"] = problem(advice=True, caution="")
    found = answer(["softmax", "better", "equal", "worse"])
    assert found.advice[0] == "Shown to be better than softmax here: better."
    assert "equal is equal to softmax within the margin and ahead in state after 4096 tokens" in found.advice[1]
    assert not any("no advice" in text for text in found.cautions)
    assert answer(["softmax", "worse"]).advice == ["Nothing here is shown to be better than softmax: keep it."]


def test_scope_names_data_items_seeds_and_budget() -> None:
    assert words.scope(group_of([run("softmax", 0), run("gla", 0), run("gla", 1)])) == (
        "data: prose.txt · 40 test items · 1–2 seeds · budget: 60steps a run · differences below 0.02 bits do not count"
    )


def test_seeds_needed_is_where_the_interval_gets_narrow_enough() -> None:
    values = (0.03, -0.02, 0.05, 0.01)
    half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    mean = float(np.mean(values))
    cell = Cell(Estimate(2, 1, 3, 4), Estimate(mean, mean - half, mean + half, 4), "undecided", values)
    needed = words.seeds_needed(cell, 0.02)
    assert needed is not None

    def width(n: int) -> float:
        return float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)

    target = max(mean, 0.02 - mean)
    assert width(needed) < target <= width(needed - 1)


def test_seeds_do_not_help_where_items_are_too_few() -> None:
    cell = Cell(Estimate(2, 1, 3, 3), Estimate(0.01, -0.2, 0.22, 3), "undecided", (0.0099, 0.01, 0.0101))
    assert words.seeds_needed(cell, 0.02) is None


def test_every_method_but_the_baseline_gets_a_passage() -> None:
    found = answer(["softmax", "better", "worse", "equal"], 3)
    assert {p.address for p in found.passages} == {"better", "worse", "equal"}


def test_level_at_the_floor_is_undecided_and_every_reader_is_told() -> None:
    records = [run(address, seed, noise=0.0005) for address in ("softmax", "gla") for seed in range(5)]
    (group,) = summarise(records)
    cell = group.rows[1].cells["bits_per_byte@T"]
    assert cell.verdict == "equal within the margin"
    floor = Floor(cell.value.value + 0.01, "counting bytes")
    (group,) = summarise([{**one, "floors": {"bits_per_byte@T": floor}} for one in records])
    cell = group.rows[1].cells["bits_per_byte@T"]
    assert (cell.verdict, cell.reason) == ("undecided", f"both at the floor of counting bytes: {floor.value:.3g}")
    assert cell.reason in " ".join(words.answer(group).passages[0].quality)
    assert cell.reason in columns.text(group, group.rows[1], group.card.metric("bits_per_byte@T")).detail
    assert "floor" in columns.header(group, group.card.metric("bits_per_byte@T"))
    (group,) = summarise([{**one, "floors": {"bits_per_byte@T": Floor(floor.value + 1, "guessing")}} for one in records])
    assert group.rows[1].cells["bits_per_byte@T"].verdict == "equal within the margin"
