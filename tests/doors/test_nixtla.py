"""Nixtla's models as forecasters: a fit for each window and series, and words where the package is missing."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from instar.checks import check
from instar.data.panel import of_array
from instar.doors.nixtla import AutoETS, StatsForecast
from instar.errors import MissingExtraError, ShapeError


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsforecast.models", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'instar\[nixtla\]'"):
        AutoETS(4)


def test_exponential_smoothing_keeps_the_contract_and_sees_a_trend() -> None:
    pytest.importorskip("statsforecast")
    assert [f"{o.name}: {o.message}" for o in check(AutoETS) if o.status == "failed"] == []
    line = np.arange(60.0)[:, None] * [1.0, -2.0] + np.random.default_rng(0).normal(size=(60, 2))
    found = AutoETS(5, context=50).forecast(of_array(line), [60])[0]
    np.testing.assert_allclose(found, np.arange(60.0, 65.0)[:, None] * [1.0, -2.0], atol=4)


def test_a_season_is_no_negative_number() -> None:
    with pytest.raises(ShapeError, match="at least 1 row"):
        StatsForecast(4, season=-1)
