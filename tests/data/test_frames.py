"""Long tables become panels: grids of times are found, gaps are seen, and what cannot be right is said."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest

from instar.data import cells, frames, time_grid
from instar.data.time_grid import Grid
from instar.errors import DataError


def stamps(first: str, step: str, count: int) -> np.ndarray:
    unit = np.timedelta64(int(step[:-1]), step[-1])
    return (np.datetime64(first) + np.arange(count) * unit).astype("datetime64[us]")


@pytest.mark.parametrize(
    ("times", "kind", "season"),
    [
        (stamps("2026-01-01T00:00:00", "1h", 50), "microseconds", 24),
        (stamps("2026-01-01T00:00:00", "5m", 50), "microseconds", 288),
        (stamps("2026-01-01", "1D", 50), "microseconds", 7),
        (stamps("2026-01-02", "7D", 50), "microseconds", 52),
        (np.arange("1990-01", "1996-01", dtype="datetime64[M]").astype("datetime64[D]"), "months", 12),
        (np.arange("1980-01", "1996-01", 3, dtype="datetime64[M]").astype("datetime64[D]"), "months", 4),
        (np.arange("1990-02", "1996-02", dtype="datetime64[M]").astype("datetime64[D]") - 1, "months", 12),
        (np.array([d for d in np.arange("2026-01-01", "2026-03-01", dtype="datetime64[D]") if np.is_busday(d)]), "weekdays", 5),
        (np.arange(3, 200, 4), "number", 1),
    ],
)
def test_the_grid_of_times_is_found_with_its_gaps_and_gives_the_times_back(times: Any, kind: str, season: int) -> None:
    kept = np.delete(times, [3, 17, 18, 30])
    column = kept.astype("datetime64[us]") if kind != "number" else kept
    grid, rows = time_grid.place(np.random.default_rng(0).permutation(column))
    assert (grid.kind, grid.season) == (kind, season)
    assert sorted(rows.tolist()) == [row for row in range(len(times)) if row not in (3, 17, 18, 30)]
    np.testing.assert_array_equal(grid.stamps(np.arange(len(times))), times)
    np.testing.assert_array_equal(grid.later(5).stamps(np.arange(3)), times[5:8])


def test_marks_are_the_hour_the_weekday_and_the_day_of_month_and_year() -> None:
    grid, _ = time_grid.place(stamps("2024-12-31T23:00:00", "1h", 9))  # a Tuesday at the end of a leap year
    marks = grid.marks(np.array([0, 1]))
    np.testing.assert_allclose(marks[0], [0.5, 1 / 6 - 0.5, 0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(marks[1], [-0.5, 2 / 6 - 0.5, -0.5, -0.5], atol=1e-6)


def test_rows_in_disorder_gaps_and_ragged_series_make_one_panel() -> None:
    hour = stamps("2026-01-01T00:00:00", "1h", 6)
    table = {
        "unique_id": ["b", "a", "a", "b", "a", "b"],
        "ds": hour[[1, 0, 3, 0, 1, 5]],
        "y": [11.0, 0.0, None, 10.0, 1.0, 15.0],
    }
    panel = frames.panel(table)
    assert (panel.ids, panel.ends) == (("b", "a"), (6, 4))
    np.testing.assert_array_equal(panel.values[:, 0], [10, 11, np.nan, np.nan, np.nan, 15])
    np.testing.assert_array_equal(panel.values[:, 1], [0, 1, np.nan, np.nan, np.nan, np.nan])


def test_tables_of_arrow_and_columns_are_read_alike_and_made_again() -> None:
    table = {"unique_id": [1, 1, 2, 2], "ds": stamps("2026-01-01", "1D", 2)[[0, 1, 0, 1]], "y": [1.0, 2.0, 3.0, 4.0]}
    arrow = pa.table(table)
    one, two = frames.panel(table), frames.panel(arrow)
    assert one.ids == two.ids == (1, 2)
    np.testing.assert_array_equal(one.values, two.values)
    assert one.grid == two.grid
    assert cells.maker(arrow)({"x": np.arange(3)}).num_rows == 3


def test_texts_and_zones_are_read_and_clocks_set_back_are_no_duplicates_in_utc() -> None:
    zone = timezone(timedelta(hours=2))
    aware = [datetime(2026, 10, 25, 2, 30, tzinfo=zone), datetime(2026, 10, 25, 2, 30, tzinfo=timezone(timedelta(hours=1)))]
    panel = frames.panel({"ds": aware, "y": [1.0, 2.0]})
    assert panel.grid.aware
    assert panel.grid.stamps(np.array([0]))[0] == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    texts = frames.panel({"ds": ["1990/1/1 0:00", "1990/1/2 0:00", "1990-01-03"], "y": ["1", "", "3.5"]})
    assert texts.grid.stamps(np.array([2]))[0] == np.datetime64("1990-01-03")
    np.testing.assert_array_equal(texts.values[:, 0], [1, np.nan, 3.5])


def test_covariates_that_all_series_share_are_one_and_the_known_future_is_appended() -> None:
    day = stamps("2026-01-01", "1D", 5)
    table = {
        "unique_id": ["a"] * 3 + ["b"] * 3,
        "ds": day[[0, 1, 2, 0, 1, 2]],
        "y": np.arange(6.0),
        "holiday": [0, 1, 0, 0, 1, 0],
        "price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    }
    panel = frames.panel(table, known=["holiday", "price"])
    assert panel.names == ("holiday", "price[a]", "price[b]")
    np.testing.assert_array_equal(panel.covariates, [[0, 1, 4], [1, 2, 5], [0, 3, 6]])
    future = {"unique_id": ["b", "b", "a", "a"], "ds": day[[3, 4, 3, 4]], "holiday": [1, 0, 1, 0], "price": [7, 8, 9, 10]}
    longer = frames.extended(panel, future, 2)
    np.testing.assert_array_equal(longer.covariates[3:], [[1, 9, 7], [0, 10, 8]])
    np.testing.assert_array_equal(longer.until(2).covariates[2:], longer.covariates[2:])  # known: nothing is hidden
    hidden = frames.panel(table).until(2).covariates
    assert np.isnan(hidden[2:]).all()
    assert not np.isnan(hidden[:2]).any()


def test_the_future_finds_the_column_of_each_covariate_and_says_one_thing() -> None:
    day = stamps("2026-01-01", "1D", 5)
    table = {
        "unique_id": ["a[1]"] * 3 + ["b"] * 3,
        "ds": day[[0, 1, 2, 0, 1, 2]],
        "y": np.arange(6.0),
        "price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "sale": [0, 1, 0, 0, 1, 0],
        "of [b]": [1, 1, 0, 1, 1, 0],
    }
    panel = frames.panel(table, known=["price", "sale", "of [b]"])
    assert frames.sources(panel) == {"price[a[1]]": "price", "price[b]": "price", "sale": "sale", "of [b]": "of [b]"}
    ahead = {"unique_id": ["a[1]", "b"], "ds": day[[3, 3]], "price": [7, 8], "sale": [1, 1], "of [b]": [0, 0]}
    np.testing.assert_array_equal(frames.extended(panel, ahead, 1).covariates[3], [7, 8, 1, 0])
    for change, words in (({"sale": [1, 0]}, "sale is 1 and also 0 at 2026-01-04"), ({"unique_id": ["b", "b"]}, "b] is 7 and")):
        with pytest.raises(DataError, match=words):
            frames.extended(panel, {**ahead, **change}, 1)
    silent = frames.extended(panel, {**ahead, "sale": [1, None]}, 1)
    assert silent.covariates[3, panel.names.index("sale")] == 1


def test_what_a_shared_covariate_was_is_not_changed_by_the_future_of_a_series_that_ended_early() -> None:
    table = {"unique_id": ["a", "a", "b", "b", "b"], "ds": [0, 1, 0, 1, 2], "y": np.arange(5.0), "sale": [0, 1, 0, 1, 0]}
    panel = frames.panel(table, known=["sale"])
    same = {"unique_id": ["a", "a"], "ds": [2, 3], "sale": [0, 1]}
    np.testing.assert_array_equal(frames.extended(panel, same, 1).covariates[:, 0], [0, 1, 0, 1])
    with pytest.raises(DataError, match="sale is 0 and also 1 at 2"):
        frames.extended(panel, {**same, "sale": [1, 1]}, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": ["1", "2", "many", "4"]}, ["y is 'many' in row 2", "number"]),
        ({"y": [1.0, np.inf, 3.0, 4.0]}, ["infinite", "row 1"]),
        ({"ds": [1, 2, 2, 4]}, ["two rows at 2", "zone"]),
        ({"ds": [1.0, 2.0, 3.0, 3.7]}, ["equal distances", "3.7"]),
        ({"ds": ["soon", "2", "3", "4"]}, ["ds is 'soon' in row 0", "2026-03-01"]),
        ({"ds": ["2026-02-30", "2", "3", "4"]}, ["2026-02-30", "day is out of range"]),
        ({"ds": ["2026-01-01", "2", "3", "4"]}, ["mixes"]),
        ({"ds": ["2026-01-01T00:00:00+01:00", "2026-01-01", "2026-01-02", "2026-01-03"]}, ["zone"]),
        ({"y": [np.nan] * 4}, ["no value at all"]),
        ({"unique_id": ["a", None, "a", "a"]}, ["unique_id is missing in row 1"]),
        ({"y": [1.0, 2.0]}, ["different lengths"]),
        ({"ds": [1, 2, 3, 10**12]}, ["far off"]),
    ],
)
def test_what_a_table_cannot_be(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        frames.panel({"ds": [1, 2, 3, 4], "y": [1.0, 2.0, 3.0, 4.0], **change})
    for word in words:
        assert word in str(caught.value)


BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("days", "kind", "season"),
    [
        ([datetime(2024, 3, 20) + timedelta(days=i) for i in range(24)], "microseconds", 7),  # the clock changes on the 31st
        ([datetime(2024 + i // 12, i % 12 + 1, 1) for i in range(15)], "months", 12),
        ([d for d in (datetime(2024, 3, 1) + timedelta(days=i) for i in range(60)) if d.weekday() < 5], "weekdays", 5),
    ],
)
def test_days_of_a_zone_are_its_days(days: list[datetime], kind: str, season: int) -> None:
    """Local midnights are none of UTC: the grid, its season and what comes next are those of the zone."""
    zoned = [day.replace(tzinfo=BERLIN) for day in days]
    past = len(days) - 3
    panel = frames.panel({"ds": np.array(zoned[:past], dtype=object), "y": np.arange(past), "x": np.ones(past)}, known=["x"])
    assert (panel.grid.kind, panel.grid.season, len(panel)) == (kind, season, past)
    told = panel.grid.stamps(np.arange(len(days)))
    assert told.tolist() == zoned
    later = frames.extended(panel, {"ds": np.array(zoned[-3:], dtype=object), "x": np.full(3, 2.0)}, 3)
    assert later.covariates[-3:, 0].tolist() == [2.0] * 3
    assert Grid(**json.loads(json.dumps(dataclasses.asdict(panel.grid)))) == panel.grid


def test_midnights_of_a_zone_without_a_name() -> None:
    given = [f"2024-03-{20 + i}T00:00:00+01:00" for i in range(9)]
    panel = frames.panel({"ds": given, "y": np.arange(9.0)})
    assert panel.grid.stamps(np.array([9])).tolist() == [datetime.fromisoformat("2024-03-29T00:00:00+01:00")]
    with pytest.raises(DataError, match=r"offsets alone.*Europe/Berlin"):
        frames.panel({"ds": [*given[:8], "2024-04-01T00:00:00+02:00"], "y": np.arange(9.0)})


def test_rounded_times_lie_on_their_grid() -> None:
    """Seconds since 1970 at tenths, with gaps: distances are off by a millionth, and the future is found all the same."""
    at = np.delete(np.arange(2000), [5, 600, 601])
    grid, rows = time_grid.place(1.7e9 + 0.1 * at)
    assert rows.tolist() == at.tolist()
    assert grid.find(1.7e9 + 0.1 * np.array([1999, 2003, 2004, 2003.5]), 1999, 2004) == [1999, 2003, None, None]
    ds = 0.1 * np.arange(200)
    panel = frames.panel({"ds": ds, "y": ds, "x": ds}, known=["x"])
    later = frames.extended(panel, {"ds": 0.1 * np.arange(195, 210), "x": np.arange(15.0)}, 10)
    assert later.covariates[200:, 0].tolist() == list(range(5, 15))


def test_whole_numbers_that_are_days_are_days() -> None:
    written = np.array([20240228, 20240229, 20240301, 20240302])
    for column in (written, [str(one) for one in written]):
        panel = frames.panel({"ds": column, "y": np.arange(4.0)})
        assert (panel.grid.kind, len(panel), panel.grid.season) == ("microseconds", 4, 7)
    assert frames.panel({"ds": written + 100000, "y": np.arange(4.0)}).grid.kind == "number"  # no February 29th in 2034


def test_pandas_own_missing_name_is_told() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"unique_id": pandas.array(["a", None], dtype="string"), "ds": [1, 2], "y": [1.0, 2.0]})
    with pytest.raises(DataError, match="unique_id is missing in row 1"):
        frames.panel(frame)
