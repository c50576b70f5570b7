"""Labelled series: files of the archives read as their own package reads them, and tables of the user's own, whole and broken."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from instar.data import series as module
from instar.data.series import SeriesSet, held_out, names, read_ts, series
from instar.data.series_table import table
from instar.errors import DataError, MissingExtraError, UnknownNameError

needs_aeon = pytest.mark.skipif(importlib.util.find_spec("aeon") is None, reason="pip install --no-deps aeon==1.6.0")
OWN = "unique_id,ds,y,z,label\na,1,1,5,up\na,2,2,,up\na,3,3,7,up\nb,1,9,1,down\n"
"""Two series, one with a gap; more are made of them below."""


def write(folder: Path, text: str, name: str = "own.csv") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def long(rows: dict[str, tuple[str, list[list[str]]]], header: str = "unique_id,ds,label,y,z") -> str:
    lines = [header]
    for name, (label, frames) in rows.items():
        lines += [",".join([name, str(t), label, *frame]) for t, frame in enumerate(frames)]
    return "\n".join(lines) + "\n"


def many(count: int = 6, extra: str = "") -> dict[str, tuple[str, list[list[str]]]]:
    return {f"s{i}": (f"c{i % 2}{extra}", [[str(i), str(t)] for t in range(1 + i)]) for i in range(count)}


@needs_aeon
@pytest.mark.parametrize("name", names())
def test_named_sets_keep_the_archive_s_split(name: str) -> None:
    found = series(name)
    sizes = {
        **{"JapaneseVowels": (270, 370, 12, 9), "BasicMotions": (40, 40, 6, 4), "PickupGestureWiimoteZ": (50, 50, 1, 10)},
        **{"ItalyPowerDemand": (67, 1029, 1, 2), "GunPoint": (50, 150, 1, 2), "ArrowHead": (36, 175, 1, 3)},
        **{"OSULeaf": (200, 242, 1, 6), "ACSF1": (100, 100, 1, 10)},
    }
    assert (len(found.train), len(found.test), len(found.channels), len(found.classes)) == sizes[name]
    assert {frame.shape[1] for frame in (*found.train.frames, *found.test.frames)} == {len(found.channels)}
    assert set(found.train.labels.tolist()) == set(range(len(found.classes)))
    lengths = {len(frame) for frame in (*found.train.frames, *found.test.frames)}
    if name == "JapaneseVowels":
        assert (min(lengths), max(lengths)) == (7, 29)
        assert found.train.frames[0][:2, 0].tolist() == [1.860936, 1.891651]
    assert (len(lengths) == 1) == (name not in ("JapaneseVowels", "PickupGestureWiimoteZ"))


@needs_aeon
def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = tmp_path / "listing.toml"
    listing.write_text(module._LIST.read_text("utf-8").replace("68a430", "000000"), "utf-8")
    monkeypatch.setattr(module, "_LIST", listing)
    with pytest.raises(DataError, match=r"not the pinned file of JapaneseVowels.*--force-reinstall aeon"):
        series("JapaneseVowels")


def test_without_the_package_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps aeon=="):
        series("BasicMotions")
    with pytest.raises(UnknownNameError, match="Did you mean BasicMotions"):
        series("BasicMotion")


def test_ts_files_of_ones_own(tmp_path: Path) -> None:
    head = "# words\n@problemName own\n@classLabel true a b\n@data\n"
    train = write(tmp_path, f"{head}1,2,?:4,5,6:a\n\n7:8:b\n", "own_TRAIN.ts")
    test = write(tmp_path, f"{head}0,NaN:1,1:b\n", "own_TEST.ts")
    found = series([str(train), str(test)])
    np.testing.assert_array_equal(found.train.frames[0], [[1, 4], [2, 5], [np.nan, 6]])
    np.testing.assert_array_equal(found.train.frames[1], [[7, 8]])
    assert (found.train.labels.tolist(), found.test.labels.tolist(), found.classes) == ([0, 1], [1], ["a", "b"])
    with pytest.raises(DataError, match="come as two"):
        series(str(train))
    with pytest.raises(DataError, match="1, 2 channels"):
        series([str(train), str(write(tmp_path, f"{head}1,2:a\n", "thin.ts"))])
    with pytest.raises(DataError, match="names the classes a, c"):
        series([str(train), str(write(tmp_path, f"{head}1:1:a\n".replace("a b", "a c"), "other.ts"))])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("1,2:c\n", "line 3: the class 'c'"),
        ("1,x:a\n", "line 3.*could not convert"),
        ("(0,1),(1,2):a\n", "line 3"),
        ("1,2:3:a\n", "channels have 2, 1 values"),
        ("1,inf:a\n", "infinite"),
        ("a\n", "channels have no values"),
        ("", "no series"),
    ],
)
def test_ts_files_that_do_not_fit(body: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"@classLabel true a b\n@data\n{body}", "own.ts")
    with pytest.raises(DataError, match=words):
        read_ts(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_ts(tmp_path / "none.ts")


def test_held_out_takes_a_share_of_each_class_and_never_the_last() -> None:
    labels = np.array([0] * 20 + [1] * 5 + [2] * 2 + [3])
    ids = [f"s{i}" for i in range(len(labels))]
    kept, out = held_out(labels, ids, 0.2)
    assert sorted(kept + out) == list(range(len(labels)))
    assert np.bincount(labels[out], minlength=4).tolist() == [4, 1, 1, 0]
    order = np.random.default_rng(0).permutation(len(labels))
    _, again = held_out(labels[order], [ids[i] for i in order], 0.2)
    assert {ids[order[i]] for i in again} == {ids[i] for i in out}


def as_sets(found: SeriesSet) -> list[dict[bytes, str]]:
    return [
        {frame.tobytes(): found.classes[label] for frame, label in zip(part.frames, part.labels.tolist(), strict=True)}
        for part in (found.train, found.test)
    ]


def test_a_table_is_series_in_any_order_of_rows_and_of_any_kind(tmp_path: Path) -> None:
    text = long(many(12)).splitlines()
    path = write(tmp_path, "\n".join(text) + "\n")
    found = table(path)
    assert (found.channels, found.classes, len(found.train), len(found.test)) == (["y", "z"], ["c0", "c1"], 10, 2)
    for part in (found.train, found.test):
        for frame, label in zip(part.frames, part.labels.tolist(), strict=True):
            assert frame[0, 0] % 2 == label
            assert frame[:, 1].tolist() == list(range(int(frame[0, 0]) + 1))
    shuffled = [text[0], *np.random.default_rng(0).permutation(text[1:])]
    assert as_sets(table(write(tmp_path, "\n".join(shuffled)))) == as_sets(found)
    rows = [dict(zip(text[0].split(","), line.split(","), strict=True)) for line in shuffled[1:]]
    numbers = [{**row, "y": float(row["y"]), "ds": int(row["ds"])} for row in rows]
    assert as_sets(table(write(tmp_path, "\n".join(map(json.dumps, numbers)), "own.jsonl"))) == as_sets(found)
    dated = [
        f"{line[: line.index(',')]},2026-01-{10 + int(line.split(',')[1]):02},{line.split(',', 2)[2]}" for line in shuffled[1:]
    ]
    assert as_sets(table(write(tmp_path, "\n".join([text[0], *dated])))) == as_sets(found)


def test_missing_values_and_the_user_s_own_split(tmp_path: Path) -> None:
    text = (
        "unique_id,ds,y,label,split\na,1,,x,train\na,2,NA,x,train\na,3,4,x,train\nb,1,NaN,y,TRAIN\nb,2,1,y,TRAIN\nc,1,2,y,test\n"
    )
    found = table(write(tmp_path, text))
    np.testing.assert_array_equal(found.train.frames[0], [[np.nan], [np.nan], [4.0]])
    assert (len(found.train), len(found.test), found.test.frames[0].tolist()) == (2, 1, [[2.0]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no row"),
        ("unique_id,ds,y,label\n", "no row"),
        ("id,time,y,label\na,1,2,x\n", "lacks unique_id, ds.*has the columns id, time, y, label"),
        ("unique_id,ds,label\na,1,x\n", "lacks a channel"),
        ("unique_id;ds;y;label\na;1;2;x\n", "one column, 'unique_id;ds;y;label'. Fields are parted by"),
        ("unique_id,ds,y,y,label\na,1,2,2,x\n", "names a column twice"),
        (OWN.replace("a,2,2", "a,2,two"), "y is 'two' in the series a at ds 2"),
        (OWN.replace("a,2,2", "a,2,inf"), "y is infinite in the series a at ds 2"),
        (OWN.replace("a,2,2", "a,1,2"), "two rows at ds 1"),
        (OWN.replace("a,2,2", "a,later,2"), "ds must be numbers in all rows"),
        (OWN.replace("a,2,2", "a,,2"), "row 2 below the header: ds is 'None'"),
        (OWN.replace("a,2,2", ",2,2"), "unique_id is 'None'"),
        (OWN.replace("2,,up", "2,,down"), "label of the series a is down and up"),
        (OWN.replace("2,,up", "2,,"), "row 2 below the header: label is"),
        (OWN.replace("b,1,9,1", "b,1,,NaN"), "series b has no value at all"),
        (OWN.replace("down", "up"), "all series are of class up"),
        (OWN, "the class down has 1 series; three are the least"),
        (long(many(), "unique_id,ds,label,y,split"), "split of the series s1 is 0 and 1"),
        ("unique_id,ds,y,label,split\na,1,1,x,train\nb,1,1,y,later\n", "split expects train or test; received 'later'"),
        ("unique_id,ds,y,label,split\na,1,1,x,train\nb,1,1,y,train\n", "2 series train and 0 test"),
        ("unique_id,ds,y,label,split\na,1,1,x,train\nb,1,1,y,test\n", "no series of the class y is in the training set"),
        ("unique_id,ds,y,label\na,1,2\n", "3 fields for 4 columns"),
    ],
)
def test_tables_that_do_not_fit(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        table(write(tmp_path, text))


def test_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        series(str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match=r"files of the kind '\.xlsx' are not read"):
        series(str(write(tmp_path, "", "own.xlsx")))
    with pytest.raises(DataError, match="One table"):
        series(["a.csv", "b.csv"])


def test_row_numbers_of_pandas_are_no_channel(tmp_path: Path) -> None:
    """In a table that is sorted by class they tell it."""
    head, *below = long(many(12)).splitlines()
    numbered = "\n".join([f",{head}", *(f"{number},{row}" for number, row in enumerate(below))])
    found = series(str(write(tmp_path, numbered)))
    assert found.channels == series(str(write(tmp_path, long(many(12)), "plain.csv"))).channels
    with pytest.raises(DataError, match=r"Column 1 of .* has no name"):
        series(str(write(tmp_path, numbered.replace("\n1,", "\n7,"), "other.csv")))
