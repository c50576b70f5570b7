"""Bags of one's own: a row an instance, in any order; and messages that say what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from instar.data import bags, datasets
from instar.errors import DataError, UnknownNameError

ROWS = ["a,yes,1,2", "b,no,3,", "a,yes,5,6", "c,no,7,8"]


def written(folder: Path, rows: list[str], head: str = "bag,label,u,v") -> Path:
    path = folder / "own.csv"
    path.write_text("\n".join([head, *rows]), "utf-8")
    return path


def test_rows_are_instances_in_any_order(tmp_path: Path) -> None:
    found = bags.bags(str(written(tmp_path, ROWS)))
    assert (found.classes, found.features, found.ids, found.labels.tolist()) == (
        ["no", "yes"],
        ["u", "v"],
        ["a", "b", "c"],
        [1, 0, 0],
    )
    np.testing.assert_array_equal(found.instances[0], [[1, 2], [5, 6]])
    np.testing.assert_array_equal(found.instances[1], [[3, np.nan]])
    numbered = written(tmp_path, [f"{n},{row}" for n, row in enumerate(ROWS)], ",bag,label,u,v")  # as pandas writes
    assert bags.table(numbered).features == ["u", "v"]


@pytest.mark.parametrize(
    ("rows", "head", "words"),
    [
        ([], "bag,label,u,v", "holds no row"),
        (ROWS, "bag,class,u,v", "lacks label; it has the columns bag, class, u, v"),
        (["a,yes"], "bag,label", "lacks a feature"),
        ([*ROWS, "a,no,1,2"], "bag,label,u,v", "label of the bag a is no and yes; it must be one"),
        ([*ROWS, ",no,1,2"], "bag,label,u,v", "row 5 below the header: bag is"),
        ([*ROWS, "d,no,x,2"], "bag,label,u,v", r"u is 'x' in row 5 below the header \(bag d\)"),
        ([*ROWS, "d,no,1,inf"], "bag,label,u,v", "v is infinite in row 5"),
        (["a,yes,1,2", "b,yes,1,2"], "bag,label,u,v", "all bags are of class yes"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, rows: list[str], head: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        bags.table(written(tmp_path, rows, head))


def test_unknown_sets_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="elephant"):
        bags.bags("elefant")
    with pytest.raises(DataError, match="no file"):
        bags.bags(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(("name", "size"), [("elephant", (200, 1391, 230, 100)), ("musk1", (92, 476, 166, 47))])
def test_public_sets_are_what_their_papers_say(name: str, size: tuple[int, int, int, int]) -> None:
    try:
        datasets.locate(name)
    except DataError as error:
        pytest.skip(str(error))
    found = bags.bags(name)
    instances = sum(map(len, found.instances))
    assert (len(found), instances, len(found.features), int(found.labels.sum())) == size
    assert not np.isnan(np.concatenate(found.instances)).any()
