"""Collections: real ones by name, files of the user, BEIR's layout, samples, and what is wrong in which row."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instar.data.collecting import open_collection, sampled
from instar.data.collection import Collection
from instar.encoders import files
from instar.errors import DataError, ShapeError, UnknownNameError

needs_data = pytest.mark.skipif("INSTAR_DATA" not in os.environ, reason="INSTAR_DATA names no folder of data sets")


def test_the_embedded_collection() -> None:
    found = open_collection()
    assert found.texts is not None
    assert found.queries is not None
    assert found.relevant is not None
    assert len(found) >= 1000
    assert len(found.queries) >= 1500
    assert len(set(found.texts)) == len(found)
    assert len(set(found.queries)) == len(found.queries)
    assert found.facts["queries_by_source"]["passages"] > 100
    for query, places in zip(found.queries, found.relevant, strict=True):
        assert not any(query in found.texts[place] for place in places), query
    again = open_collection("topics")
    assert (again.ids, again.texts, again.queries, again.facts) == (found.ids, found.texts, found.queries, found.facts)
    thread = found.texts[found.ids.index("threading.Thread")]
    assert "run() method" in thread


@needs_data
def test_squad_and_xquad() -> None:
    for name, documents, queries in (("squad", 6795, 10570), ("squad:test", 6652, 11877), ("xquad", 240, 1190)):
        found = open_collection(name)
        assert found.queries is not None
        assert len(found) <= documents
        assert len(found) > 0.99 * documents
        assert 0.99 * queries < len(found.queries) <= queries
        assert found.truth == "queries"
    found = open_collection("squad")
    at = found.queries.index("where did super bowl 50 take place ?")  # type: ignore[union-attr]
    assert "levi 's stadium" in found.texts[found.relevant[at][0]]  # type: ignore[index]


@needs_data
def test_clinc150_has_labels() -> None:
    found = open_collection("clinc150")
    assert found.truth == "labels"
    assert set(Counter(found.labels).values()) == {30}
    assert len(open_collection("clinc150:train")) == 15000


def made(documents: int = 200, queries: int = 150) -> Collection:
    draw = np.random.default_rng(3)
    relevant = [np.sort(draw.choice(documents, draw.integers(1, 4), replace=False)) for _ in range(queries)]
    ids = [f"d{i}" for i in range(documents)]
    texts = [f"text {i}" for i in range(documents)]
    return Collection("made", ids, texts, None, [f"q{i}" for i in range(queries)], ["?"] * queries, relevant)


@pytest.mark.parametrize("size", [40, 90, 199])
def test_a_sample_keeps_what_is_relevant(size: int) -> None:
    whole = made()
    found = sampled(whole, size, seed=1)
    assert len(found) == size
    assert found.relevant is not None
    assert whole.relevant is not None
    assert len(found.relevant) >= 0.5 * size / 200 * 150
    for name, places in zip(found.query_ids, found.relevant, strict=True):
        kept = {found.ids[place] for place in places}
        assert kept == {whole.ids[place] for place in whole.relevant[whole.query_ids.index(name)]}
    assert all(found.texts[i] == f"text {name[1:]}" for i, name in enumerate(found.ids))  # type: ignore[index]
    assert sampled(whole, size, seed=1).ids == found.ids
    assert sampled(whole, size, seed=2).ids != found.ids
    assert f"{size} of 200" in found.facts["sample"]
    assert sampled(whole, 200, seed=1) is whole
    with pytest.raises(ShapeError, match="1 document"):
        sampled(whole, 0, seed=1)


DOCUMENTS = [
    {"id": 7, "text": "Cats sleep.", "label": "animals", "count": 3},
    {"id": "b", "text": "Rates rose.", "label": "money"},
    {"id": "007", "text": "Dogs bark.", "label": "animals", "count": "1.5"},
]
QUERIES = [{"id": 1, "text": "pets", "relevant": [7, "007"]}, {"id": 2, "text": "bank", "relevant": "b"}]


def lines(path: Path, table: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in table) + "\n")
    return path


def test_files_of_the_user(tmp_path: Path) -> None:
    documents, queries = lines(tmp_path / "d.jsonl", DOCUMENTS), lines(tmp_path / "q.jsonl", QUERIES)
    found = open_collection(str(documents))
    assert (found.ids, found.truth, found.counts) == (["7", "b", "007"], "labels", {"7": 3, "b": 0, "007": 1.5})
    found = open_collection(str(documents), queries=queries)
    assert found.truth == "queries"
    assert [r.tolist() for r in found.relevant or ()] == [[0, 2], [1]]
    assert found.query_ids == ["1", "2"]
    csv = tmp_path / "d.tsv"
    csv.write_text("id\ttext\n7\tCats sleep.\nb\tRates rose.\n007\tDogs bark.\n")
    asked = tmp_path / "q.csv"
    asked.write_text('id,text,relevant\n1,pets,"[7, ""007""]"\n2,bank,b\n')
    again = open_collection(str(csv), queries=asked)
    assert (again.ids, again.texts, again.query_ids, again.queries) == (found.ids, found.texts, found.query_ids, found.queries)
    assert all(np.array_equal(a, b) for a, b in zip(again.relevant or (), found.relevant or (), strict=True))
    assert open_collection(str(csv)).truth == "neighbours"
    trec = tmp_path / "q.qrels"
    trec.write_text("1 0 7 1\n1 0 b 0\n1 0 007 2\n2 0 b 1\n")
    graded = open_collection(str(csv), queries=asked, qrels=trec)
    assert [r.tolist() for r in graded.relevant or ()] == [[0, 2], [1]]


def test_the_layout_of_beir(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    lines(
        folder / "corpus.jsonl",
        [{"_id": "a", "title": "Cats", "text": "They sleep."}, {"_id": "b", "title": "", "text": "Rates."}],
    )
    lines(
        folder / "queries.jsonl", [{"_id": "q1", "text": "pets"}, {"_id": "q2", "text": "money"}, {"_id": "q3", "text": "train"}]
    )
    (folder / "qrels").mkdir()
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq3\ta\t1\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta\t2\nq2\tb\t1\nq2\ta\t0\n")
    found = open_collection(str(folder))
    assert (found.name, found.ids, found.texts) == ("tiny", ["a", "b"], ["Cats They sleep.", "Rates."])
    assert (found.query_ids, [r.tolist() for r in found.relevant or ()]) == (["q1", "q2"], [[0], [1]])
    assert found.facts["queries_without_relevance"] == 1
    assert open_collection(str(folder), qrels=folder / "qrels" / "dev.tsv").query_ids == ["q3"]


def test_vectors_alone(tmp_path: Path) -> None:
    files.write(tmp_path / "v.npz", ["x", "y"], np.eye(2, dtype=np.float32))
    found = open_collection(str(tmp_path / "v.npz"))
    assert (found.ids, found.texts, found.truth) == (["x", "y"], None, "neighbours")
    files.write(tmp_path / "v.npy", None, np.eye(2, dtype=np.float32))
    assert open_collection(str(tmp_path / "v.npy")).ids == ["0", "1"]
    pytest.importorskip("pyarrow")
    files.write(tmp_path / "v.parquet", ["x", "y"], np.eye(2, dtype=np.float32))
    assert open_collection(str(tmp_path / "v.parquet")).ids == ["x", "y"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"id": "b", "text": "again"}, "row 4: the id 'b' stands in row 2"),
        ({"id": "c", "text": " ", "label": "x"}, "row 4 has no text"),
        ({"id": "c", "label": "x"}, "row 4 has no text"),
        ({"id": "c", "text": 3, "label": "x"}, "row 4: 'text' expects text"),
        ({"id": "c", "text": "t"}, "row 4 has no label"),
        ({"text": "t", "label": "x"}, "row 4: an id"),
        ({"id": "c", "text": "t", "label": "x", "count": "often"}, "row 4: 'count'"),
        ({"id": "c", "text": "t", "label": "x", "count": -1}, "row 4: 'count'"),
    ],
)
def test_wrong_documents(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        open_collection(str(lines(tmp_path / "d.jsonl", [*DOCUMENTS, change])))


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"id": 3, "text": "t", "relevant": "z"}, "row 3: there is no document 'z'"),
        ({"id": 3, "text": "t", "relevant": []}, "row 3: 'relevant' expects"),
        ({"id": 3, "text": "t"}, "row 3: 'relevant' expects"),
        ({"id": 3, "text": "t", "relevant": "[7"}, "row 3: 'relevant' is no list"),
        ({"id": 2, "text": "t", "relevant": "b"}, "row 3: the id 2 stands in row 2"),
        ({"id": 3, "text": "", "relevant": "b"}, "row 3 has no text"),
    ],
)
def test_wrong_queries(tmp_path: Path, row: dict[str, Any], match: str) -> None:
    documents = lines(tmp_path / "d.jsonl", DOCUMENTS)
    with pytest.raises(DataError, match=match):
        open_collection(str(documents), queries=lines(tmp_path / "q.jsonl", [*QUERIES, row]))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("1 0 zzz 1\n", "line 1: there is no document 'zzz'"),
        ("1 0 7 1\n9 0 7 1\n", "line 2: there is no query '9'"),
        ("1 0 7 1\n1 7\n", "line 2: 'query document grade'"),
        ("1 0 7 1\n1 0 7 good\n", "line 2: 'query document grade'"),
        ("1 0 7 0\n", "none of the 2 queries"),
    ],
)
def test_wrong_relevance(tmp_path: Path, text: str, match: str) -> None:
    documents, queries = lines(tmp_path / "d.jsonl", DOCUMENTS), lines(tmp_path / "q.jsonl", QUERIES)
    (tmp_path / "q.qrels").write_text(text)
    with pytest.raises(DataError, match=match):
        open_collection(str(documents), queries=queries, qrels=tmp_path / "q.qrels")


def test_what_is_no_collection(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="topics"):
        open_collection("topic")
    with pytest.raises(UnknownNameError):
        open_collection("topics:test")
    with pytest.raises(DataError, match=r"corpus\.jsonl"):
        open_collection(str(tmp_path))
    with pytest.raises(DataError, match="its own queries"):
        open_collection("topics", queries=tmp_path / "q.jsonl")
    with pytest.raises(DataError, match="--queries"):
        open_collection(str(lines(tmp_path / "d.jsonl", DOCUMENTS)), qrels=tmp_path / "q.qrels")
    with pytest.raises(DataError, match="There is no file"):
        open_collection(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="'relevant'"):
        open_collection(str(tmp_path / "d.jsonl"), queries=lines(tmp_path / "q.jsonl", [{"id": 1, "text": "t"}]))
