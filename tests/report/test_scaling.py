"""Families of metrics and the places where two lines of costs cross."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import LENGTHS, METRICS, full, group_of, run, timing

from instar.cards import Metric
from instar.report import scaling


def test_metrics_with_one_name_are_a_family() -> None:
    found = {f.name: f for f in scaling.families(METRICS)}
    assert found["prefill_seconds"].lengths == [float(n) for n in LENGTHS]
    assert found["bits_per_byte"].lengths is None
    assert (found["bits_per_byte"].title, found["state_bytes"].title) == ("Bits per byte", "State")


def test_a_metric_without_a_condition_is_no_point_of_the_line() -> None:
    metrics = [Metric("m", "Whole", "fraction", "higher", "quality")]
    metrics += [Metric(f"m@{n}", f"After {n}", "fraction", "higher", "quality", over="frames seen") for n in (10, 20)]
    whole, line = scaling.families(metrics)
    assert (whole.members, line.lengths, line.over) == ((metrics[0],), [10.0, 20.0], "frames seen")


@pytest.mark.parametrize(
    ("titles", "title"),
    [
        (("test accuracy, labels kept", "the last"), "some name"),
        (("the last of a lesson", "the labels"), "some name"),
        (("bits of the first text", "bits of the fifth"), "bits"),
        (("errors of outputs", "errors of outputs, before"), "errors of outputs"),
        (("layer, 256 tokens", "layer, 2048 tokens"), "layer"),
    ],
)
def test_a_shared_title_ends_with_a_word(titles: tuple[str, str], title: str) -> None:
    members = tuple(Metric(f"some_name@{i}", text, "s", "lower", "time") for i, text in enumerate(titles))
    assert scaling.Family("some_name", members).title == title


def test_numeric_conditions_are_put_in_order() -> None:
    metrics = [Metric(f"m@{n}", "M", "s", "lower", "time") for n in (4096, 256, 1024)]
    assert scaling.families(metrics)[0].lengths == [256.0, 1024.0, 4096.0]


@given(st.floats(300, 7000), st.floats(0.3, 3))
def test_two_power_laws_cross_where_they_should(place: float, power: float) -> None:
    xs = [256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0]
    mine = [(x, x) for x in xs]
    theirs = [(x, x * (x / place) ** power) for x in xs]
    found = scaling.crossing(mine, theirs)
    assert found is not None
    assert not found.below_first
    assert found.at == pytest.approx((place,), rel=1e-6)


def test_lines_that_do_not_cross() -> None:
    line = [(1.0, 1.0), (2.0, 2.0)]
    above = scaling.crossing([(1.0, 3.0), (2.0, 4.0)], line)
    assert above is not None
    assert (above.at, above.below_first) == ((), False)
    same = scaling.crossing(line, line)
    assert same is not None
    assert same.same
    assert scaling.crossing([(1.0, 1.0)], line) is None


def test_a_touch_is_no_crossing() -> None:
    theirs = [(1.0, 2.0), (2.0, 2.0), (4.0, 2.0)]
    touch = scaling.crossing([(1.0, 1.0), (2.0, 2.0), (4.0, 1.0)], theirs)
    assert touch is not None
    assert touch.at == ()
    through = scaling.crossing([(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)], theirs)
    assert through is not None
    assert through.at == pytest.approx((2.0,))


def test_crossings_of_a_comparison() -> None:
    group = group_of([run("softmax", 0), run("gla", 0), timing(["softmax", "gla"])])
    prefill = next(f for f in scaling.scaled(group) if f.name == "prefill_seconds")
    assert scaling.crossings(group, prefill)["gla"].at == pytest.approx((700,), rel=0.1)


def test_only_costs_measured_at_two_lengths_are_scaled() -> None:
    assert [f.name for f in scaling.scaled(group_of(full()))] == ["state_bytes", "prefill_seconds"]
    assert [f.name for f in scaling.scaled(group_of([run("softmax", 0), run("gla", 0)]))] == ["state_bytes"]
