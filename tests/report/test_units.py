"""Figures as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar.bench.statistics import Estimate, exact
from instar.report import units


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (2.5e-7, "seconds", "250 ns"),
        (0, "s", "0 s"),
        (3.1e-6, "s/token", "3.10 µs/token"),
        (4096, "bytes", "4 KiB"),
        (1.5 * 2**30, "bytes", "1.50 GiB"),
        (100, "bytes", "100 B"),
        (41_000, "tokens/s", "41 k tokens/s"),
        (0.5812, "fraction", "0.581"),
        (2.2, "bits", "2.20 bits"),
        (212_480, "", "212\u202f480"),
        (3.2e9, "FLOPs", "3.20 GFLOPs"),
        (-0.002, "s", "−2 ms"),
    ],
)
def test_quantity(value: float, unit: str, text: str) -> None:
    assert units.quantity(value, unit) == text


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_figure_that_is_none_is_said(value: float) -> None:
    assert units.number(value) in ("∞", "−∞", "not a number")


def test_digits_follow_the_interval() -> None:
    assert units.estimate(Estimate(2.18312, 2.1711, 2.1951, 5), "bits") == ("2.183 bits", "±0.012")
    assert units.estimate(Estimate(0.01234, 0.0119, 0.0131, 7), "s", spread=True) == ("12.3 ms", "11.9–13.1")
    assert units.estimate(Estimate(2.18312, None, None, 2), "bits") == ("2.183 bits", "")
    assert units.estimate(exact(4096), "bytes") == ("4 KiB", "")


def test_differences_carry_their_sign() -> None:
    assert units.signed(-0.0312, "bits", -0.045, -0.017) == "−0.031 bits"
    assert units.signed(0.0312, "bits", 0.017, 0.045) == "+0.031 bits"
    assert units.interval(-0.045, -0.017, "bits", -0.031) == "−0.045 … −0.017"


def test_ratios() -> None:
    assert [units.times(v) for v in (3.1, 0.42, 1 / 64, 120.0)] == ["3.10×", "0.42×", "1/64", "120×"]


@given(st.floats(1e-9, 1e9), st.sampled_from(["s", "bytes", "tokens/s", "bits", ""]))
def test_the_scale_is_undone_by_its_factor(value: float, unit: str) -> None:
    factor, _ = units.scale(unit, value)
    assert factor > 0
    if unit == "s" and value >= 1e-9:
        assert 1 <= value / factor < 1000 or factor == 1.0


@given(st.floats(-1e8, 1e8, allow_nan=False))
def test_a_number_reads_back(value: float) -> None:
    text = units.number(value).replace("−", "-").replace("\u202f", "")
    assert float(text) == pytest.approx(value, rel=1e-3, abs=1e-9)
