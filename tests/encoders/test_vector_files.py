"""Vectors in files: round trips, conversions that are said, and hostile files with the row of what is wrong."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instar.encoders import files
from instar.errors import DataError, ShapeError

KINDS = [".npy", ".npz", ".parquet"]


def rows(n: int = 7, width: int = 5, seed: int = 0) -> Any:
    found = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back(kind: str, tmp_path: Path) -> None:
    if kind == ".parquet":
        pytest.importorskip("pyarrow")
    path, table, names = tmp_path / f"v{kind}", rows(), [f"doc-{i}" for i in range(6)] + ["ü"]
    files.write(path, names, table)
    ids, found, facts = files.vectors(path)
    assert ids == (None if kind == ".npy" else names)
    assert np.abs(found - table).max() < 1e-7
    assert found.dtype == np.float32
    assert (facts["rows"], facts["dim"]) == (7, 5)
    assert "normalised" not in facts
    files.write(path, None, table * np.arange(1, 8)[:, None])
    ids, found, facts = files.vectors(path)
    assert ids is None
    assert np.abs(found - table).max() < 1e-6
    assert "1 to 7" in facts["normalised"]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing half written stays


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "int8", "uint8"])
def test_other_numbers_become_unit_vectors(dtype: str, tmp_path: Path) -> None:
    table = (np.abs(rows()) * 100).astype(dtype)
    np.save(tmp_path / "v.npy", table)
    found = files.vectors(tmp_path / "v.npy")[1]
    wide = table.astype(np.float64)
    assert found.dtype == np.float32
    assert np.abs(found - wide / np.linalg.norm(wide, axis=1, keepdims=True)).max() < 1e-6


def test_unit_vectors_are_mapped_and_their_file_is_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK", 3)
    table = rows(10)
    np.save(tmp_path / "v.npy", table)
    found = files.vectors(tmp_path / "v.npy")[1]
    assert isinstance(found.base, np.memmap)
    found[0] = 0
    assert np.array_equal(np.load(tmp_path / "v.npy"), table)
    table[8] *= 2  # one in the last block alone has another length
    np.save(tmp_path / "w.npy", table)
    found = files.vectors(tmp_path / "w.npy")[1]
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6
    np.savez(tmp_path / "alone.npz", table)
    assert np.array_equal(files.vectors(tmp_path / "alone.npz")[1], found)


def saved(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def array(value: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=True)
    return stream.getvalue()


def packed(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def changed(place: tuple[int, ...], value: float) -> bytes:
    table = rows()
    table[place] = value
    return array(table)


HOSTILE = [
    (".npy", array(np.array([{}], dtype=object)), "pickled"),
    (".npz", saved(vectors=rows(), ids=np.array(["a", 1] * 3 + [None], dtype=object)), "pickled"),
    (".npz", packed("vectors.npy", array(np.array([{}], dtype=object))), "pickled"),
    (".npz", packed("vectors.txt", b"text"), "no array"),
    (".npy", array(rows())[:-9], "cut short"),
    (".npy", array(rows())[:40], "no array|cut short|cannot be read"),
    (".npy", b"", "no array|cannot be read"),
    (".npy", b"\x80\x04K\x01.", "no array"),
    (".npz", saved(vectors=rows())[:-50], "damaged or cut short"),
    (".npz", b"", "damaged or cut short"),
    (".npz", b"\x80\x04K\x01.", "or no .npz at all"),
    (".npy", array(rows()[0]), "rows, width"),
    (".npy", array(rows().reshape(7, 5, 1)), "rows, width"),
    (".npy", array(np.zeros((0, 5), np.float32)), "rows, width"),
    (".npy", array(np.array([["a", "b"]])), "rows, width"),
    (".npy", array(rows().astype(np.complex64)), "rows, width"),
    (".npy", changed((4, 2), np.nan), "row 5 is NaN"),
    (".npy", changed((6, 0), np.inf), "row 7 is NaN or infinite"),
    (".npy", changed((3,), 0), "row 4 is zero"),
    (".npz", saved(a=rows(), b=rows()), "'vectors' and optionally 'ids'"),
    (".npz", saved(vectors=rows(), ids=np.array(list("abcdeaf"))), "row 6: the id 'a' stands in row 1"),
    (".npz", saved(vectors=rows(), ids=np.arange(6)), "6 ids for 7"),
    (".npz", saved(vectors=rows(), ids=np.linspace(0, 1, 7)), "ids are"),
    (".npz", saved(vectors=rows(), ids=np.array([*"abcdef", ""])), "row 7: an id"),
    (".parquet", b"PAR1 no parquet PAR1", "no Parquet"),
    (".csv", b"a,b", "no file of vectors"),
]


@pytest.mark.parametrize(("kind", "data", "match"), HOSTILE, ids=[f"{i}{kind}" for i, (kind, _, _) in enumerate(HOSTILE)])
def test_hostile_files(kind: str, data: bytes, match: str, tmp_path: Path) -> None:
    if kind == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"v{kind}"
    path.write_bytes(data)
    with pytest.raises(DataError, match=match):
        files.vectors(path)


def test_tables_of_lists(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table, path = rows(), tmp_path / "v.parquet"

    def wrote(**columns: Any) -> Path:
        parquet.write_table(arrow.table(columns), path, row_group_size=3)
        return path

    lists = arrow.array(table.astype(float).tolist())
    ids, found, _ = files.vectors(wrote(id=list(range(7)), text=["x"] * 7, anything=lists))
    assert ids == [str(i) for i in range(7)]
    assert np.abs(found - table).max() < 1e-6
    assert files.vectors(wrote(embedding=lists.cast(arrow.large_list(arrow.float32()))))[0] is None
    for columns, match in (
        ({"embedding": [[1.0, 2.0], [1.0, 2.0], [1.0]]}, "row 3: 1 numbers"),
        ({"embedding": [[1.0, 2.0], None]}, "row 2 of 2 has no vector"),
        ({"embedding": [[1.0, 2.0], [1.0, None]]}, "row 2 is NaN"),
        ({"embedding": [["a"]]}, "lists of string"),
        ({"text": ["a"]}, "'embedding'"),
        ({"id": ["a", "a"], "embedding": [[1.0], [1.0]]}, "row 2: the id 'a'"),
        ({"id": ["a", None], "embedding": [[1.0], [1.0]]}, "row 2: an id"),
    ):
        with pytest.raises(DataError, match=match):
            files.vectors(wrote(**columns))


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="3 ids"):
        files.write(tmp_path / "v.npz", ["a", "b", "c"], rows())
    with pytest.raises(DataError, match="no file of vectors"):
        files.write(tmp_path / "v.csv", None, rows())
    with pytest.raises(DataError, match="no file"):
        files.vectors(tmp_path / "v.npy")


@pytest.mark.parametrize("place", [0, 4])
def test_rows_of_a_table_without_a_vector_are_named(place: int, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, lists = tmp_path / "v.parquet", rows().tolist()
    for value, words in (
        (None, f"row {place + 1} of 7 has no vector"),
        ([None] * 5, f"row {place + 1} is NaN"),
        ([], "numbers; the first row has"),
    ):
        parquet.write_table(arrow.table({"embedding": [*lists[:place], value, *lists[place + 1 :]]}), path)
        with pytest.raises(DataError, match=words):
            files.vectors(path)
